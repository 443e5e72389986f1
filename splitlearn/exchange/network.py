"""A run's network, cut into what the client and what the server holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.exchange.exchange import exchange_from
from splitlearn.seeds import torch_drawing_from
from splitlearn.segments import adapters, auxiliary, bottleneck
from splitlearn.segments.cutpoint import CutPoint
from splitlearn.segments.cutting import split, valid_cuts
from splitlearn.segments.forward import call, run_of
from splitlearn.segments.layout import lay_out
from splitlearn.segments.parts import MIXED, Parts, untie
from splitlearn.segments.tracing import in_short
from splitlearn.segments.trainable import trained
from splitlearn.tasks import task_from

CLIENT = "client"  # all that the client holds, in `freeze`
LAST = "last"  # the last valid cut
FITTED = 2  # cuts whose bottleneck can start from first batches: the client's first part, and the server's


@dataclass
class Network:
    """A network that is cut.

    Attributes:
        client: the first part, the third, and so on; then the auxiliary network, where the exchange has one.
        server: the others; then what the exchange has beside them.
        cuts: where, in the order of computation.
        example: inputs, (2, …).
        notes: what the user should know of its weights.
        model: the uncut network, bottlenecks included; it has the parts' weights, and not copies of them.
        untied: names of the server's copies of parameters that the client has too, with its names.
        unfitted: cuts, by their numbers, whose bottleneck is still to get its start from first batches.
    """

    client: Parts
    server: Parts
    cuts: list[CutPoint]
    example: Tensor
    notes: list[str]
    model: nn.Module
    unfitted: list[int]
    untied: dict[str, str]

    def parts(self) -> list[tuple[Parts, nn.Module]]:
        """The parts in the order of computation, each with the side that holds it."""
        sides = (self.client, self.server)
        return [(sides[i % 2], sides[i % 2].parts[i // 2]) for i in range(len(self.cuts) + 1)]

    @torch.no_grad()
    def alone(self) -> str | None:
        """What goes wrong in training with a single sample in the batch, such as batch norm over one value."""
        x = self.example[:1]
        with torch_drawing_from(0):
            for side, part in self.parts():
                side.train()
                buffers = {name: buffer.clone() for name, buffer in part.named_buffers()}  # which it writes into
                try:
                    x = side.run(part, x, weights=buffers)
                except Exception as error:
                    return in_short(error)
        return None


def build(cfg: DictConfig, about: dict[str, Any] | None = None, pretrained: bool = False) -> Network:
    """The network of a run's config, cut as its exchange needs it, and frozen as `freeze` says.

    Args:
        cfg: of the run.
        about: what the network has to know of the data (see Task.load); None: as far as the config says.
        pretrained: loads the weights that the config names; else the run's seed gives them, for others to be loaded.

    Raises:
        UserError: the network does not fit the data, or a cut is not possible.
    """
    task, exchange = task_from(cfg), exchange_from(cfg)
    rest, first = task.network(cfg, about or task.default_about(cfg)), task.example(cfg)
    example, notes = first, task.pretrain(cfg, rest, about) if pretrained else []
    if (lora := cfg.get("lora")) and lora.rank is not None:
        adapters.inject(rest, lora, cfg.seed, _holders(cfg, about))
        trains = sum(one.numel() for one in rest.parameters() if one.requires_grad)
        notes.append(f"LoRA: {trains:,} of {sum(one.numel() for one in rest.parameters()):,} weights train")
    notes += [exchange.warning] * bool(exchange.warning)
    notes += [task.revealed] * bool(task.revealed and exchange.sends_targets)
    lengths, longest = task.lengths(example), task.longest(cfg)
    lay_out(rest, example, lengths, cfg.get("channels_last", False), cfg.precision in MIXED)
    plain, model, parts, points, cuts = rest, rest, [], [], exchange.cuts(cfg)
    for cut, channels in zip(cuts, bottlenecks(cfg, len(cuts)), strict=True):
        if channels is not None and longest is not None:
            raise UserError(f"bottleneck={channels} is for samples of one shape, and texts differ in length: set null")
        try:
            path = task.cut_path(cfg, cut, plain) if cut != LAST else task.last_cut(plain)
            path = _last(rest, example, lengths) if path is None else path
            part, following = split(rest, path, example, lengths)
        except UserError as error:
            if points:
                raise UserError(f"{error}; this cut has to come after {points[-1].path}") from None
            raise
        reached, crossing = run_once(part, example, lengths), None
        if channels is not None:
            shape = tuple(reached.shape[1:])
            pair = bottleneck.pair_for(path, shape, channels, cfg.seed)
            crossing = channels, bottleneck.channels_of(shape)
            model, rest = (bottleneck.insert(one, path, pair) for one in (model, rest))
            part, following = split(rest, f"{bottleneck.name_of(path)}.reduce", example)
            reached = run_once(part, example)
        example, rest = reached, following
        parts.append(part)
        is_ragged = lengths is not None and run_of(rest).is_ragged
        point = CutPoint(path, tuple(example.shape[1:]), example.dtype, crossing, is_ragged)
        points.append(of_longest(point, longest))
        lengths = lengths if is_ragged else None
    parts.append(rest)
    outputs = run_once(rest, example, lengths)
    if about is not None:
        task.check_outputs(cfg, outputs, about)
    own = parts[0::2]
    if exchange.auxiliary is not None:
        own.append(auxiliary.Auxiliary(points[-1].shape, tuple(outputs.shape[1:]), exchange.auxiliary, cfg.seed))
    others = parts[1::2]
    if (beside := exchange.beside_server(own[0], tuple(first.shape[1:]), points[0].shape, cfg.seed)) is not None:
        others.append(beside)
    num_crossing = (len(points) + 1) // 2, len(points) // 2  # of the parts of each
    sides = zip((own, others), num_crossing, strict=True)
    client, server = (Parts(side, cfg.precision, cfg.cut_precision, number) for side, number in sides)
    untied = untie(model, client, server)
    notes += [
        f"{name} is tied to {own}, which is on the other side of the cut: the server has a copy of {nbytes:,} bytes"
        for name, own, nbytes in untied
    ]
    fits = cfg.get("bottleneck_init") == "pca"
    unfitted = [number for number, point in enumerate(points) if point.channels and number < FITTED and fits]
    network = Network(client, server, points, first, notes, model, unfitted, {name: own for name, own, _ in untied})
    freeze(network, cfg.get("freeze"))
    for end in exchange.alone_in_epochs:
        if not trained(getattr(network, end)):
            raise UserError(
                f"exchange={exchange.name} has epochs in which the {end} trains alone, and none of its weights train:"
                " let freeze or lora.sides leave it some, or use exchange=labels_up"
            )
    return network


def _holders(cfg: DictConfig, about: dict[str, Any] | None) -> Callable[[str], bool]:
    """Whether a layer, by its path, is on a side that is to have adapters."""
    if cfg.lora.sides == "both":
        return lambda path: True
    plain = build(OmegaConf.merge(cfg, {"lora": {"rank": None}, "freeze": None}), about)
    names = (plain.client if cfg.lora.sides == CLIENT else plain.server).state_dict()
    return lambda path: f"{path}.weight" in names


def bottlenecks(cfg: DictConfig, num_cuts: int) -> list[int | None]:
    """How many channels are to cross each cut (see channels_at); all of them in configurations older than it."""
    wanted = cfg.get("bottleneck")
    wanted = OmegaConf.to_container(wanted) if OmegaConf.is_config(wanted) else wanted
    return bottleneck.channels_at(wanted, num_cuts, exchange_from(cfg).name)


def freeze(network: Network, what: str | list[str] | None) -> None:
    """
    Raises:
        UserError: there is nothing of this name, or nothing else.
    """
    paths = [what] if isinstance(what, str) else list(what or ())
    names = [name for _, part in network.parts() for name, _ in part.named_parameters()]
    for path in paths:
        if path != CLIENT and not any(f"{name}.".startswith(f"{path}.") for name in names):
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(f"freeze={path} matches no weights: choose {known}, a path in one of these, or {CLIENT}")
    network.client.freeze("" if path == CLIENT else path for path in paths)
    network.server.freeze(path for path in paths if path != CLIENT)
    if not any(map(trained, (network.client, network.server))):
        raise UserError(f"freeze=[{','.join(paths)}] leaves nothing to train")


def load(built: Network, weights: dict[str, Tensor], source: str) -> None:
    """Gives a cut network the weights and buffers of an uncut one, which `source` names.

    A bottleneck, or adapters, that the other has not got are left as they are.

    Raises:
        UserError: they are another network's.
    """
    own = built.client.state_dict() | built.server.state_dict()
    weights = {name: weights[of] for name, of in built.untied.items() if of in weights} | weights
    weights = auxiliary.beside(adapters.beside(weights, own), own)
    for number, cut in enumerate(built.cuts):
        pair = f"{bottleneck.name_of(cut.path)}."
        if any(name.startswith(pair) for name in weights):
            built.unfitted = [other for other in built.unfitted if other != number]
        elif cut.channels:
            weights = weights | {name: value for name, value in own.items() if name.startswith(pair)}
    here, there = ({name: tuple(value.shape) for name, value in state.items()} for state in (own, weights))
    differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differing:
        first, others = differing[0], len(differing) - 1
        raise UserError(
            f"{source} holds another network: {first} is {there.get(first, 'missing')} there and"
            f" {here.get(first, 'missing')} here"
            + f", and {others} more differ" * (others > 0)
            + "; start from a run with the same arch, image size and classes, and the same bottleneck or none"
        )
    for side in (built.client, built.server):
        side.load_state_dict({name: weights[name] for name in side.state_dict()})


def of_longest(point: CutPoint, longest: int | None) -> CutPoint:
    """A cut with the map of the longest sample, where the example is shorter."""
    return replace(point, shape=(longest, *point.shape[1:])) if point.is_ragged else point


def _last(rest: nn.Module, example: Tensor, lengths: Tensor | None) -> str:
    points = valid_cuts(rest, example, lengths)
    if not points:
        raise UserError("cut_back=last is not possible: there is no cut with parameters on both sides; cut earlier")
    return points[-1].path


@torch.no_grad()
def run_once(part: nn.Module, example: Tensor, lengths: Tensor | None = None) -> Tensor:
    """What a part gives in evaluation mode, for its shape and dtype."""
    part.eval()
    output = call(part, example, lengths)
    part.train()
    return output


def check(cfg: DictConfig) -> None:
    """Builds the network, as far as it can be known without the data, on no device: it takes neither time nor memory.

    Raises:
        UserError: as `build`.
    """
    try:
        with torch.device("meta"):
            build(cfg)
    except Exception:
        build(cfg)  # it is wrong, or one that cannot be built without values
