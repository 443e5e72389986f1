"""What a model computes, as a graph: torch.fx with only the modules around a cut opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

MODE = "training"  # a module's attribute


class Refusal(Exception):
    """Why a cut is not possible."""


class Untraceable(Refusal):
    """torch.fx cannot trace the modules around it."""


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All of the model in training or evaluation mode, and afterwards each module as it was."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """
    Raises:
        ValueError: the forward pass of an opened module changes its buffers, which a graph would not do.
    """
    before = {name: (buffer, buffer.clone(), buffer._version) for name, buffer in module.named_buffers(recurse=False)}
    try:
        yield
    finally:
        changed = [
            name
            for name, (buffer, _, version) in before.items()
            if module._buffers[name] is not buffer or buffer._version != version
        ]
        for name in changed:
            module._buffers[name] = before[name][0].copy_(before[name][1])
    if changed:
        raise ValueError(f"{type(module).__name__} changes its {changed[0]}")


def in_short(error: Exception) -> str:
    """An error of a network's in a line."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}".removesuffix(".").removesuffix(": ")


def modules_around(path: str) -> set[str]:
    """The modules that a module is in."""
    return {path[:i] for i, letter in enumerate(path) if letter == "."} | {""}


def trace(
    model: nn.Module, opened: set[str] | None = None, modes: tuple[bool, ...] = (False, True)
) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """The model's graph, and the node that each module's output is; of several calls, the last one's.

    Args:
        model: its forward gets one tensor.
        opened: paths of the modules that are opened; None opens all that can be.
        modes: what the graph is right for: evaluation, training, or both.

    Raises:
        Untraceable: it cannot be traced.
        Refusal: the modes differ by more than a True or False.
    """
    graphs = []
    if "forward" in vars(model):  # an instance's own, which torch.fx would not see
        raise Untraceable("the model's forward is not that of its class")
    for training in modes:
        tracer = _Tracer(opened)
        try:
            with mode(model, training), _unchanged(model):
                graphs.append(tracer.trace(model))
        except Exception as error:  # whatever a forward raises that is given no values
            raise Untraceable(f"the modules around it cannot be traced ({in_short(error)})") from None
    for node, evaluated in zip_longest(graphs[-1].nodes, graphs[0].nodes):
        _unite(model, node, evaluated)
    return graphs[-1], tracer.outputs


class _Tracer(fx.Tracer):
    """Opens the modules in `opened` alone; with None all that torch.fx would, but for those that it cannot trace."""

    def __init__(self, opened: set[str] | None):
        super().__init__()
        self.opened, self.closed = opened, set()
        self.outputs: dict[str, fx.Node] = {}

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        arguments = [self.root, self.create_proxy("placeholder", "x", (), {})]  # the others have their defaults
        nodes = self.root.graph.nodes if isinstance(self.root, fx.GraphModule) else ()
        for target in {node.target for node in nodes if node.op == "get_attr" and node.target.endswith(f".{MODE}")}:
            owner = self.root.get_submodule(target.rpartition(".")[0])  # that was opened before: it keeps its mode
            owner.training = self.create_proxy("get_attr", target, (), {})
        return root_fn, arguments

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        if self.opened is None:
            return path in self.closed or super().is_leaf_module(module, path)
        return path not in self.opened

    def call_module(self, module, forward, args, kwargs):
        path, num_nodes, depth = self.path_of_module(module), len(self.graph.nodes), len(self.module_stack)
        try:
            with _unchanged(module):
                output = super().call_module(module, forward, args, kwargs)
        except Exception:
            if self.opened is not None:
                raise
            for node in list(reversed(self.graph.nodes))[: len(self.graph.nodes) - num_nodes]:
                self.graph.erase_node(node)
            while len(self.module_stack) > depth:
                self.module_stack.popitem()
            self.outputs = {name: node for name, node in self.outputs.items() if not name.startswith(f"{path}.")}
            self.closed.add(path)
            output = super().call_module(module, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[path] = output.node
        return output


def _owner(node: fx.Node) -> str:
    """The path of the module in whose forward it was recorded; "" is the model."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def _unite(model: nn.Module, node: fx.Node | None, evaluated: fx.Node | None) -> None:
    """Makes what is True in a node of the training's graph, and False in that of evaluation, depend on the mode of the
    module that computes it, which may be frozen where others are not."""
    different = Refusal(
        "the modules around it do something else in training than in evaluation: put that into a module of its own"
    )
    if node is None or evaluated is None or node.op != evaluated.op:
        raise different
    if node.target != evaluated.target:  # which the same constant's is too: each trace makes its own
        constants = [getattr(model, str(one.target), None) for one in (node, evaluated) if one.op == "get_attr"]
        if len(constants) < 2 or not (constants[0].is_meta or torch.equal(*constants)):
            raise different
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    others, other_spec = pytree.tree_flatten((evaluated.args, evaluated.kwargs))
    if spec != other_spec:
        raise different
    for index, (leaf, other) in enumerate(zip(leaves, others, strict=True)):
        if leaf is True and other is False:
            with node.graph.inserting_before(node):
                leaves[index] = node.graph.get_attr(f"{_owner(node)}.{MODE}".lstrip("."))
        elif not isinstance(leaf, fx.Node) and repr(leaf) != repr(other):
            raise different
    node.args, node.kwargs = pytree.tree_unflatten(leaves, spec)
