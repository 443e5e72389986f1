"""What the modules of a model give when it runs, and which of its parameters each output depends on.

A run of a model in evaluation mode, with gradients, leaves autograd's graph. In it, a parameter that can be reached
from a module's output is one that this output depends on; one that can be reached from the model's output by a way
around it is one that the rest needs. So one run says of all cuts at once what is on which side, and whether more would
cross. A second run of another batch size and length says which sizes of each output are the input's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from splitlearn.seeds import torch_drawing_from
from splitlearn.segments.tracing import Refusal, in_short, mode

INPUT = ""  # stands for the model's input among the names of parameters


@dataclass(frozen=True)
class Blank:
    """A tensor that is not computed: its shape, by that of the model's input, and its dtype.

    Attributes:
        sizes: of each dimension a factor, and the input's dimensions that it is multiplied by.
        dtype: of it.
    """

    sizes: tuple[tuple[int, tuple[int, ...]], ...]
    dtype: torch.dtype

    def shape(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(factor * prod(inputs[i] for i in of) for factor, of in self.sizes)

    def zeros(self, inputs: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.zeros(self.shape(inputs), dtype=self.dtype, device=device)

    @classmethod
    def of(cls, one: Tensor, other: Tensor, inputs: tuple[tuple[int, ...], tuple[int, ...]]) -> Blank:
        """Of two tensors that were computed from inputs of these two shapes."""
        varying = [i for i, (size, another) in enumerate(zip(*inputs, strict=True)) if size != another]
        products = [of for n in range(1, len(varying) + 1) for of in combinations(varying, n)]

        def size(here: int, there: int) -> tuple[int, tuple[int, ...]]:
            for of in products if here != there else ():
                factors = [
                    divmod(size, prod(shape[i] for i in of)) for size, shape in zip((here, there), inputs, strict=True)
                ]
                if factors[0] == factors[1] and factors[0][1] == 0:
                    return factors[0][0], of
            return here, ()

        return cls(tuple(map(size, one.shape, other.shape)), one.dtype)


class Recording:
    """One run of a model on an example, in evaluation mode.

    Args:
        model: maps one tensor to one tensor.
        example: its input.

    Attributes:
        output: of the model, without its graph.
        outputs: what each module gave, by its path, in the order in which they were done; of several calls the last.
        calls: how often each was called.

    Raises:
        Refusal: the model cannot take this, or does not give one tensor.
    """

    def __init__(self, model: nn.Module, example: Tensor):
        self.outputs: dict[str, Any] = {}
        self.calls: dict[str, int] = {}
        self._nodes: dict[str, Any] = {}
        hooks = [
            module.register_forward_hook(lambda _, inputs, output, path=path: self._note(path, output))
            for path, module in model.named_modules()
            if path
        ]
        named = parameters_of(model)
        # Leaves of their own, so that a tied parameter is one for each of its names, and that frozen ones are seen.
        leaves = {name: tensor.detach() for name, tensor in named.items() if tensor.is_floating_point()}
        x = example.detach().clone()
        for leaf in (*leaves.values(), *([x] if x.is_floating_point() else [])):
            leaf.requires_grad_()
        self._names = {id(x): INPUT} | {id(leaf): name for name, leaf in leaves.items()}
        try:
            with mode(model, False), torch_drawing_from(0), torch.enable_grad():
                # What writes into its input needs one that is no leaf.
                given = x.view_as(x) * 1 if x.is_floating_point() else x
                output = functional_call(model, leaves, (given,), tie_weights=False)
        except Exception as error:
            raise Refusal(f"the model cannot take a {tuple(example.shape)} tensor ({in_short(error)})") from None
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(output, Tensor):
            raise Refusal(f"the model gives a {type(output).__name__}, where one tensor is needed")
        self._leaves, self._end = leaves, output.grad_fn  # an id is one's as long as it is there
        self._input, self.output = x, output.detach()

    def _note(self, path: str, output: Any) -> None:
        self.calls[path] = self.calls.get(path, 0) + 1
        self.outputs.pop(path, None)  # to its end
        self.outputs[path] = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach(), output)
        tensor = only_tensor(output)
        self._nodes[path] = None if tensor is None else tensor.grad_fn

    def node(self, path: str) -> Any:
        """What stands for a module's output in the graph; the same for modules that give the same tensor."""
        return self._nodes.get(path)

    def sides(self, path: str) -> tuple[set[str], set[str]]:
        """Names of the parameters that a module's output depends on, and of those that the rest needs beside it.

        Raises:
            Refusal: the model cannot be cut behind this module.
        """
        if path not in self.calls:
            raise Refusal("the module is not used")
        if self.calls[path] > 1:
            raise Refusal("the module is used more than once")
        found = only_tensor(self.outputs[path])
        if found is None or not found.is_floating_point() or found.shape[:1] != self._input.shape[:1]:
            raise Refusal("the module's output is not one tensor of floats with the samples as its first dimension")
        boundary = self._nodes[path]
        before = self._reached(boundary, None)
        after = self._reached(self._end, boundary)
        if self._passed is False:
            raise Refusal("the model's output does not depend on it")
        if self._input.is_floating_point() and INPUT not in before:
            raise Refusal("it does not depend on the model's input")
        if both := before & after:
            what = sorted(both)[0] or "the model's input"
            raise Refusal(f"more than its output would cross it: what follows needs {what} too (a skip connection?)")
        for side, names in (("client", before - {INPUT}), ("server", after)):
            if not names:
                raise Refusal(f"it leaves the {side} segment without parameters")
        return before - {INPUT}, after

    def _reached(self, node: Any, boundary: Any) -> set[str]:
        """Names of the leaves below a node of the graph, but for those below another."""
        found, seen, waiting, self._passed = set(), set(), [node], False
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            if node is boundary:
                self._passed = True
                continue
            seen.add(node)
            if (variable := getattr(node, "variable", None)) is not None:
                found.add(self._names[id(variable)])
            waiting.extend(following for following, _ in node.next_functions)
        return found

    def blanks(self, other: Recording) -> dict[str, Any]:
        """What each module gives, with a Blank for each tensor; the other is of an input of another shape."""
        inputs = tuple(self._input.shape), tuple(other._input.shape)
        found = {}
        for path, output in self.outputs.items():
            leaves, spec = pytree.tree_flatten(output)
            others = pytree.tree_leaves(other.outputs.get(path))
            if len(leaves) == len(others):
                pairs = zip(leaves, others, strict=True)
                blank = [Blank.of(a, b, inputs) if isinstance(a, Tensor) else a for a, b in pairs]
                found[path] = pytree.tree_unflatten(blank, spec)
        return found


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """By their names; a tied one has several, and a module that is at two places has one."""
    return {
        f"{path}.{name}".lstrip("."): parameter
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def only_tensor(output: Any, kind: type = Tensor) -> Any:
    """The one tensor of what a module gives, be it in a tuple; None where there are none or several."""
    tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, kind)]
    return tensors[0] if len(tensors) == 1 else None


def is_below(path: str, others: Iterable[str]) -> bool:
    """Whether a module is one of others, or within it."""
    return any(path == other or path.startswith(f"{other}.") for other in others)
