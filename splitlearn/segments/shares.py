"""How much of a network comes before each place where it can be cut: of its weights, and of what it computes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from splitlearn.segments.forward import call
from splitlearn.segments.tracing import mode


@dataclass(frozen=True)
class Work:
    """Of a network, or of its beginning.

    Attributes:
        weights: parameters, in numbers.
        flops: of a forward pass for one sample: two for each multiplication and addition of matrix products and
            convolutions, which all others are few beside.
    """

    weights: int
    flops: int


def work_up_to(
    model: nn.Module, paths: Iterable[str], example: Tensor, lengths: Tensor | None = None
) -> dict[str, Work]:
    """What the model does until each of these modules has its output, in the order in which it runs; "" is all of it.

    Args:
        model: as in `split`.
        paths: of modules.
        example: an input, (B, …).
        lengths: (B,) of its samples, where these differ.
    """
    used, counter, found = _Used(model), FlopCounterMode(display=False), {}

    def note(path: str, *_) -> None:
        found[path] = Work(used.num_weights, round(counter.get_total_flops() / len(example)))

    hooks = [model.get_submodule(path).register_forward_hook(partial(note, path)) for path in {*paths, ""}]
    try:
        # With gradients, and attention by matrix products: fused kernels are not counted.
        with mode(model, False), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter, used:
            call(model, example.clone(), lengths)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Used(TorchDispatchMode):
    """Counts a model's parameters as they are used for the first time."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.unused = {id(parameter): parameter.numel() for parameter in model.parameters()}
        self.num_weights = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for leaf in tree_leaves((args, kwargs)):
            self.num_weights += self.unused.pop(id(leaf), 0)
        return function(*args, **(kwargs or {}))
