"""Cuts any model at a named layer into a client and a server segment.

How it works: the model is traced with torch.fx, but only the modules around the cut are opened; all others stay
whole, so that they keep their parameters' names, their dropout and their batch norm. The client segment is what the
cut module's output is computed from, the server segment is the rest. The cut module's output must be all that
crosses: a cut inside a residual block, which the skip connection crosses too, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from splitlearn.errors import UserError


@dataclass(frozen=True)
class CutPoint:
    """A module that a model can be cut after, and the map that crosses there.

    Attributes:
        path: the module's path in the model.
        shape: shape of one sample's map.
        dtype: its dtype.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's map, uncompressed."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def split(model: nn.Module, cut: str, example: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cuts `model` after the module at path `cut`.

    Args:
        model: any model that maps one tensor to one tensor. Both segments share its parameters, under the same names.
        cut: path of a module, such as "layer2" or "features.25".
        example: an input of the model, (B, …), used to find the valid cuts where this one is not.

    Returns:
        (client_segment, server_segment), with server_segment(client_segment(x)) == model(x).

    Raises:
        UserError: no such module, or more than its output crosses the cut; names the valid cuts.
    """
    try:
        if cut not in dict(model.named_modules()) or not cut:
            raise _Refusal("no module has this path")
        tracer = _Tracer(opened={cut[:i] for i, letter in enumerate(cut) if letter == "."} | {""})
        return _divide(model, tracer.trace(model), tracer.outputs.get(cut))
    except fx.proxy.TraceError as error:
        raise UserError(f"cut={cut} is not possible: the modules around it depend on their data ({error})") from None
    except _Refusal as refusal:
        valid = ", ".join(point.path for point in valid_cuts(model, example))
        raise UserError(f"cut={cut} is not possible: {refusal}. Valid cuts: {valid}") from None


def valid_cuts(model: nn.Module, example: Tensor) -> list[CutPoint]:
    """All cuts that `split` accepts, in the order of computation; of modules with the same output the outermost."""
    tracer = _Tracer()
    graph = tracer.trace(model)
    training = model.training
    with torch.no_grad():
        ShapeProp(fx.GraphModule(model, graph).eval()).propagate(example)
    model.train(training)
    points: dict[fx.Node, CutPoint] = {}
    for path, node in sorted(tracer.outputs.items(), key=lambda item: item[0].count("."), reverse=True):
        meta = node.meta.get("tensor_meta")
        try:
            _parts(graph, node, model)
        except _Refusal:
            continue
        if isinstance(meta, TensorMetadata) and meta.dtype.is_floating_point:
            points[node] = CutPoint(path, tuple(meta.shape[1:]), meta.dtype)
    return [points[node] for node in graph.nodes if node in points]


class _Refusal(Exception):
    """Why a cut is not possible."""


class _Tracer(fx.Tracer):
    """Records the node that each module's output is; opens the modules in `opened`, or all that torch.fx would."""

    def __init__(self, opened: set[str] | None = None):
        super().__init__()
        self.opened = opened
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return super().is_leaf_module(module, path) if self.opened is None else path not in self.opened

    def call_module(self, module, forward, args, kwargs):
        output = super().call_module(module, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs[self.path_of_module(module)] = output.node
        return output


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _parts(graph: fx.Graph, boundary: fx.Node | None, model: nn.Module) -> tuple[list[fx.Node], list[fx.Node]]:
    """Nodes of the client and of the server segment, the boundary in the first, the graph's output in the second."""
    if boundary is None:
        raise _Refusal("the module is not used, or gives more than one tensor")
    output = next(node for node in graph.nodes if node.op == "output")
    client = _ancestors(boundary)
    server = _ancestors(output) - client
    if boundary not in _ancestors(output):
        raise _Refusal("the model's output does not depend on it")
    if not any(node.op == "placeholder" for node in client):
        raise _Refusal("it does not depend on the model's input")
    crossing = {node for node in client if node is not boundary and any(user in server for user in node.users)}
    if crossing:
        raise _Refusal(f"{len(crossing)} more tensor{'s' * (len(crossing) > 1)} would cross it (a skip connection?)")
    for side, nodes in (("client", client), ("server", server)):
        if not any(_has_parameters(node, model) for node in nodes):
            raise _Refusal(f"it leaves the {side} segment without parameters")
    return [node for node in graph.nodes if node in client], [node for node in graph.nodes if node in server]


def _has_parameters(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return any(True for _ in model.get_submodule(node.target).parameters())
    return node.op == "get_attr" and node.target in dict(model.named_parameters())


def _divide(model: nn.Module, graph: fx.Graph, boundary: fx.Node | None) -> tuple[fx.GraphModule, fx.GraphModule]:
    client_nodes, server_nodes = _parts(graph, boundary, model)
    client, copies = fx.Graph(), {}
    for node in client_nodes:
        copies[node] = client.node_copy(node, copies.__getitem__)
    client.output(copies[boundary])

    server = fx.Graph()
    smashed = server.placeholder("smashed")
    if _is_written(boundary, model):
        smashed = server.call_method("clone", (smashed,))  # the smashed data must outlive an in-place activation
    copies = {boundary: smashed}
    for node in server_nodes:
        copies[node] = server.node_copy(node, copies.__getitem__)
    return tuple(
        fx.GraphModule(model, part, class_name=f"{side}Segment")
        for side, part in (("Client", client), ("Server", server))
    )


def _is_written(node: fx.Node, model: nn.Module) -> bool:
    """Whether the node's output, or what may be a view of it, may be changed in place."""
    return any(
        _may_write(user, model) or (not _has_parameters(user, model) and _is_written(user, model))
        for user in node.users
    )


def _may_write(node: fx.Node, model: nn.Module) -> bool:
    """Whether the node may change its input in place."""
    if node.op == "call_module":
        return any(getattr(module, "inplace", False) for module in model.get_submodule(node.target).modules())
    return bool(node.kwargs.get("inplace")) or (node.op == "call_method" and node.target.endswith("_"))
