"""A learnt pair of layers at a cut: the map's channels are projected to fewer before it crosses, and back after it.

    client segment ─► map, C channels ─► reduce ═══ n channels ═══► expand ─► map, C channels ─► server segment

How it works: the pair is put into the uncut network, behind the module that it is cut after, as "bottleneck_<module>",
and the network is cut between its two layers. So both are weights of their segments like any others. They start as the
best affine projection of the maps of some first batches, which is their PCA: reduce(x) = V(x - mean), expand(z) = Vᵀz +
mean, with the leading eigenvectors of the channels' covariance as rows of V. Means and covariances of several parts of
the data add up to those of all, so that the maps themselves stay where they are.

Source: Shao and Zhang 2020, "BottleNet++", arXiv:1910.14315, for a pair at the cut that is learnt with the network,
there a convolutional encoder and decoder around a noisy channel, here a projection each. Hotelling 1933 for the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, fx, nn

from splitlearn.errors import UserError
from splitlearn.kernels.channels import channel_axis
from splitlearn.kinds import shown
from splitlearn.seeds import derive, torch_drawing_from
from splitlearn.segments.cutpoint import CutPoint
from splitlearn.segments.cutting import as_module, run, split
from splitlearn.segments.tracing import Untraceable, modules_around, trace

# By the number of a sample's dimensions: layers that mix the channels at each place.
LAYERS = {
    1: nn.Linear,
    2: nn.Linear,
    3: partial(nn.Conv2d, kernel_size=1),
    4: partial(nn.Conv3d, kernel_size=1),
}


class Bottleneck(nn.Module):
    """The pair; starts as a random orthogonal projection and its transpose.

    Args:
        shape: of a sample's map at the cut: (C, H, W), (C, D, H, W), (T, C) or (C,).
        channels: n, that cross: fewer than C.
        seed: of the projection.
    """

    def __init__(self, shape: tuple[int, ...], channels: int, seed: int = 0):
        super().__init__()
        layer, of = LAYERS[len(shape)], channels_of(shape)
        with torch_drawing_from(seed):
            self.reduce, self.expand = layer(of, channels), layer(channels, of)
            nn.init.orthogonal_(self.reduce.weight)
        with torch.no_grad():
            self.expand.weight.copy_(self.reduce.weight.transpose(0, 1))
            self.reduce.bias.zero_()
            self.expand.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.reduce(x))


def channels_of(shape: tuple[int, ...]) -> int:
    """How many channels a map has, by the shape of one sample's."""
    return shape[channel_axis((1, *shape)) - 1]


def channels_at(bottleneck: Any, num_cuts: int, exchange: str) -> list[int | None]:
    """How many channels are to cross each cut, by the config key `bottleneck`; None for all that there are.

    Raises:
        UserError: it does not say so.
    """
    is_list = isinstance(bottleneck, list)
    listed = bottleneck if is_list else [bottleneck] * num_cuts
    is_fine = all(one is None or (type(one) is int and one >= 1) for one in listed)
    if not is_fine or (is_list and not any(listed)):
        raise UserError(
            f"bottleneck={shown(bottleneck)} must be null, a whole number of channels, at least 1, or a list with one"
            " of these for each cut, such as [64,null]"
        )
    if len(listed) != num_cuts:
        raise UserError(
            f"bottleneck={shown(bottleneck)} is of {len(listed)} cuts, and exchange={exchange} has {num_cuts}: give a"
            " number for each, or one for all"
        )
    return listed


def in_words(cut: CutPoint) -> str:
    """A cut with the map that crosses, and what a bottleneck leaves of it."""
    of = ", bottleneck {} of {} channels".format(*cut.channels) if cut.channels else ""
    return f"{cut.path} ({'up to ' * cut.is_ragged}{'×'.join(map(str, cut.shape))}{of})"


def name_of(cut: str) -> str:
    """What the pair behind the module at path `cut` is called in the network."""
    return f"bottleneck_{cut.replace('.', '_')}"


def with_bottleneck(model: nn.Module, cut: str, channels: int, example: Tensor, seed: int = 0) -> fx.GraphModule:
    """`model` with a bottleneck behind the module at path `cut`, which it can be cut at: `bottleneck_<cut>.reduce`.

    What scripts/export.py writes of a run with bottleneck=… loads into it.

    Args:
        model: as for `split`; the result shares its parameters, under the same names.
        cut: a valid cut.
        channels: that cross, fewer than the map has.
        example: an input of the model, (B, …).
        seed: of the projection that it starts with.

    Raises:
        UserError: it cannot be cut there, or the map has no more channels than that.
    """
    client, _ = split(model, cut, example)
    return insert(model, cut, pair_for(cut, tuple(run(client, example).shape[1:]), channels, seed))


def pair_for(cut: str, shape: tuple[int, ...], channels: int, seed: int) -> Bottleneck:
    """A pair for the map of a cut, by the shape of one sample's; raises as `with_bottleneck`."""
    if len(shape) not in LAYERS:
        raise UserError(
            f"bottleneck={channels} is not possible after {cut}, whose map is {'×'.join(map(str, shape)) or 'a number'}"
            " a sample: choose a cut with (C, H, W), (T, C) or (C,), or set bottleneck=null"
        )
    if channels >= channels_of(shape):
        raise UserError(
            f"bottleneck={channels} leaves as many channels as the map after {cut} has, {channels_of(shape)}, or more:"
            " choose fewer, or null, which in a list is null for this cut alone"
        )
    return Bottleneck(shape, channels, derive(seed, "bottleneck", cut))


def insert(model: nn.Module, cut: str, pair: Bottleneck) -> fx.GraphModule:
    """The model with the pair behind the module at path `cut`, a valid one.

    Raises:
        UserError: it was cut by running it.
    """
    try:
        graph, outputs = trace(model, modules_around(cut))
    except Untraceable:
        raise UserError(
            f"bottleneck=… needs a network that torch.fx can trace, which it cannot around {cut}: set bottleneck=null"
        ) from None
    whole, boundary, name = as_module(model, graph, type(model).__name__), outputs[cut], name_of(cut)
    whole.add_submodule(name, pair)
    after = boundary
    for layer in ("reduce", "expand"):
        with whole.graph.inserting_after(after):
            after = whole.graph.call_module(f"{name}.{layer}", (after,))
    reduce, expand = after.args[0], after
    boundary.replace_all_uses_with(expand, delete_user_cb=lambda user: user is not reduce)
    whole.recompile()
    return whole


# Its start


@dataclass
class Moments:
    """Number, mean and scatter of vectors: the channels at each place of each sample.

    Attributes:
        count: vectors.
        mean: (C,) float64.
        scatter: Σ (x - mean)(x - mean)ᵀ, (C, C) float64.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, maps: Tensor) -> Moments:
        """Of a batch of maps, (B, C, H, W), (B, T, C) or (B, C)."""
        axis = channel_axis(maps.shape)
        rows = maps.detach().movedim(axis, -1).reshape(-1, maps.shape[axis]).double()
        mean = rows.mean(0)
        return cls(len(rows), mean.cpu(), ((rows - mean).T @ (rows - mean)).cpu())

    @classmethod
    def zero(cls, channels: int) -> Moments:
        return cls(0, torch.zeros(channels).double(), torch.zeros(channels, channels).double())

    def __add__(self, other: Moments) -> Moments:
        """Of both (Chan, Golub and LeVeque 1979, Eq. 2.1)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * other.count / count * apart.outer(apart)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    def packed(self) -> tuple[int, Tensor, Tensor]:
        """Count, mean, and the covariance's upper triangle, row by row, as they are sent: float32, half of it once."""
        rows, columns = torch.triu_indices(*self.scatter.shape)
        return self.count, self.mean.float(), (self.scatter / max(self.count, 1))[rows, columns].float()

    @classmethod
    def unpack(cls, count: int, mean: Tensor, triangle: Tensor) -> Moments:
        covariance = torch.zeros(len(mean), len(mean)).double()
        rows, columns = torch.triu_indices(*covariance.shape)
        covariance[rows, columns] = covariance[columns, rows] = triangle.double()
        return cls(count, mean.double(), covariance * count)


@contextmanager
def measured(part: nn.Module, cut: CutPoint) -> Iterator[Moments]:
    """The moments of all maps that a part of the network gives, while it lasts, to the pair after a cut."""
    total = Moments.zero(cut.channels[1])
    layer = part.get_submodule(f"{name_of(cut.path)}.reduce")
    handle = layer.register_forward_pre_hook(lambda _, inputs: vars(total).update(vars(total + Moments.of(inputs[0]))))
    try:
        yield total
    finally:
        handle.remove()


def fitted(cut: CutPoint, moments: Moments) -> tuple[dict[str, Tensor], float]:
    """The pair's weights, by their names in the network, that project maps with these moments with the least error.

    Returns them, float32, with the share of the maps' variance that they keep; none where there are no maps.
    """
    if not moments.count:
        return {}, nan
    (channels, _), name = cut.channels, name_of(cut.path)
    places = (1,) * (len(cut.shape) - 1) if len(cut.shape) > 2 else ()  # a convolution's
    values, vectors = torch.linalg.eigh(moments.scatter)
    basis = vectors.T.flip(0)[:channels].contiguous()
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis *= largest.sign()  # else the sign is up to the machine
    variance, kept = values.clamp_(min=0).sum().item(), values[-channels:].sum().item()
    weights = {
        "reduce.weight": basis.reshape(*basis.shape, *places),
        "reduce.bias": -basis @ moments.mean,
        "expand.weight": basis.T.reshape(*basis.T.shape, *places),
        "expand.bias": moments.mean,
    }
    share = kept / variance if variance else 1.0
    return {f"{name}.{key}": value.float().contiguous() for key, value in weights.items()}, share
