"""Cuts any model at a named layer into a client and a server segment.

How it works: the model is traced with torch.fx, but only the modules around the cut are opened; all others stay
whole, so that they keep their parameters' names, their dropout and their batch norm. The client segment is what the
cut module's output is computed from, the server segment is the rest. The cut module's output must be all that
crosses: a cut inside a residual block, which the skip connection crosses too, is refused. What the opened modules do
only in training (`self.training`) is found by tracing both, and stays so. At last the halves and the model are run
once: a cut through which they differ is refused too.

A model that torch.fx cannot trace is cut by running it (see running.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from splitlearn.errors import UserError
from splitlearn.seeds import torch_drawing_from
from splitlearn.segments import running
from splitlearn.segments.cutpoint import CutPoint
from splitlearn.segments.forward import call
from splitlearn.segments.tracing import Refusal, Untraceable, in_short, mode, modules_around, trace


def split(model: nn.Module, cut: str, example: Tensor, lengths: Tensor | None = None) -> tuple[nn.Module, nn.Module]:
    """Cuts `model` after the module at path `cut`.

    Args:
        model: any model that maps one tensor to one tensor; optional arguments of its forward have their defaults.
            Both segments share its parameters, under the same names.
        cut: path of a module, such as "layer2" or "features.25".
        example: an input of the model, (B, …), that the halves are tried with, and the valid cuts found.
        lengths: (B,) of its samples, where these differ in length, so that masks are of what a sample has: each half
            then computes its own, and the second one takes the lengths beside the map. None: all are of one shape.

    Returns:
        (client_segment, server_segment), with server_segment(client_segment(x)) == model(x).

    Raises:
        UserError: no such module, or more than its output crosses the cut; names the valid cuts.
    """
    if example.is_floating_point() and not example.is_meta and not example.any():  # zeros hide differences
        example = torch.rand(example.shape, generator=torch.Generator().manual_seed(0)).to(example)
    expected = run(model, example, lengths)
    try:
        if not isinstance(expected, Tensor):
            raise Refusal(f"the model gives a {type(expected).__name__}, where one tensor is needed")
        if cut not in dict(model.named_modules()) or not cut:
            raise Refusal("no module has this path")
        if lengths is not None:
            return running.split(model, cut, example, lengths)
        try:
            graph, outputs = trace(model, modules_around(cut))
        except Untraceable:
            return running.split(model, cut, example)
        client, server = _divide(model, graph, outputs.get(cut))
        smashed = run(client, example)
        if not _is_map(smashed, len(example)):
            raise Refusal("the module's output is not one tensor of floats with the samples as its first dimension")
        found = run(server, smashed)
        if found.shape != expected.shape or not (found.is_meta or torch.allclose(found, expected, equal_nan=True)):
            raise Refusal("the halves do not compute what the model does")
        return client, server
    except Refusal as refusal:
        valid = ", ".join(point.path for point in valid_cuts(model, example, lengths)) or "none"
        raise UserError(f"cut={cut} is not possible: {refusal}. Valid cuts: {valid}") from None


def valid_cuts(model: nn.Module, example: Tensor, lengths: Tensor | None = None) -> list[CutPoint]:
    """All cuts that `split` accepts, in the order of computation; of modules with the same output the outermost."""
    if not isinstance(run(model, example, lengths), Tensor):
        return []
    if lengths is not None:
        return list(running.valid_cuts(model, example, lengths))
    try:
        (graph, outputs), accepts = trace(model), lambda path: True
    except Refusal:  # the modes differ somewhere: each cut is tried on its own
        try:
            graph, outputs = trace(model, modes=(False,))
        except Refusal:
            return list(running.valid_cuts(model, example))
        accepts = partial(_is_possible, model)
    with mode(model, False), torch.no_grad():
        ShapeProp(fx.GraphModule(model, graph).eval()).propagate(example)
    tensors_of = cache(partial(_tensors, model))
    points: dict[fx.Node, CutPoint] = {}
    for path, node in sorted(outputs.items(), key=lambda item: item[0].count("."), reverse=True):
        found = node.meta.get("tensor_meta")
        try:
            _parts(graph, node, tensors_of)
        except Refusal:
            continue
        if _is_map(found, len(example)) and accepts(path):
            points[node] = CutPoint(path, tuple(found.shape[1:]), found.dtype)
    return [points[node] for node in graph.nodes if node in points]


def _is_possible(model: nn.Module, path: str) -> bool:
    try:
        trace(model, modules_around(path))
        return True
    except Refusal:
        return False


def _is_map(found: Any, num_samples: int) -> bool:
    """Whether it is a tensor of floats, or what ShapeProp says of one, with the samples as its first dimension."""
    is_tensor = isinstance(found, (Tensor, TensorMetadata))
    return is_tensor and found.dtype.is_floating_point and found.shape[:1] == (num_samples,)


@torch.no_grad()
def run(part: nn.Module, x: Tensor, lengths: Tensor | None = None) -> object:
    """What a part of the model gives in evaluation mode; draws the same each time.

    Raises:
        UserError: it cannot take this.
    """
    with mode(part, False), torch_drawing_from(0):
        try:
            return call(part, x.clone(), lengths)  # which it may write into
        except Exception as error:
            raise UserError(
                f"the network cannot take a {x.dtype} tensor of shape {'×'.join(map(str, x.shape))}: {in_short(error)}"
            ) from None


# Dividing


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and all that it is computed from."""
    found, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


@lru_cache(maxsize=1)
def _used(graph: fx.Graph) -> set[fx.Node]:
    """What the graph's output is computed from."""
    return _ancestors(next(node for node in graph.nodes if node.op == "output"))


def _parts(
    graph: fx.Graph, boundary: fx.Node | None, tensors_of: Callable[[fx.Node], list[tuple[str, Tensor]]]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """Nodes of the client and of the server segment, the boundary in the first, the graph's output in the second."""
    if boundary is None:
        raise Refusal("the module is not used, or gives more than one tensor")
    client, used = _ancestors(boundary), _used(graph)
    server = used - client
    if boundary not in used:
        raise Refusal("the model's output does not depend on it")
    if not any(node.op == "placeholder" for node in client):
        raise Refusal("it does not depend on the model's input")
    crossing = {node for node in client if node is not boundary and any(user in server for user in node.users)}
    if crossing:
        raise Refusal(f"{len(crossing)} more tensor{'s' * (len(crossing) > 1)} would cross it (a skip connection?)")
    of_client, of_server = ({t: name for node in nodes for name, t in tensors_of(node)} for nodes in (client, server))
    for side, tensors in (("client", of_client), ("server", of_server)):
        if not any(isinstance(tensor, nn.Parameter) for tensor in tensors):
            raise Refusal(f"it leaves the {side} segment without parameters")
    if both := of_client.keys() & of_server.keys():
        raise Refusal(f"both segments would have {of_client[both.pop()]}, and each its own of it after a step")
    return [node for node in graph.nodes if node in client], [node for node in graph.nodes if node in server]


def _tensors(model: nn.Module, node: fx.Node) -> list[tuple[str, Tensor]]:
    """Parameters and modules' buffers that the node uses, with their names; a buffer by itself does not change."""
    if node.op == "call_module":
        module = model.get_submodule(node.target)
        return [(f"{node.target}.{name}", t) for name, t in (*module.named_parameters(), *module.named_buffers())]
    value = attrgetter(node.target)(model) if node.op == "get_attr" else None
    return [(node.target, value)] if isinstance(value, nn.Parameter) else []


def _has_parameters(node: fx.Node, model: nn.Module) -> bool:
    return any(isinstance(tensor, nn.Parameter) for _, tensor in _tensors(model, node))


def _divide(model: nn.Module, graph: fx.Graph, boundary: fx.Node | None) -> tuple[fx.GraphModule, fx.GraphModule]:
    client_nodes, server_nodes = _parts(graph, boundary, partial(_tensors, model))
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
    return as_module(model, client, "ClientSegment"), as_module(model, server, "ServerSegment")


def as_module(model: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """A module of that name that computes what a graph of the model's says; they share parameters and buffers."""
    part, kept = fx.GraphModule(model, graph, class_name=name), model.state_dict().keys()
    for path, buffer in list(part.named_buffers()):
        if path not in kept:  # which torch.fx does not look at: it is no part of a state
            owner, _, field = path.rpartition(".")
            part.get_submodule(owner).register_buffer(field, buffer, persistent=False)
    return part


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
