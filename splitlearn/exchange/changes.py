"""The average of the client segments as changes of the one before, coded, both ways, with error feedback.

After an epoch, all clients go on from one average. At the end of the next one each sends what it has changed of it, and
gets what the mean of all has changed of it, as one payload of the codec `compressor@weights`. What a payload leaves out
is added to what the same end sends next: it comes later, and is not lost.

    client                                                server
    weights - average + left out ──encode──► payload ════► + average = its weights
                                                             │ mean of all clients'
    + average = next average ◄═══ payload ◄──encode── mean - average + left out, and + average = next average

The tensors' changes are of very different sizes, so each is divided by the root mean square of what is new in it,
float32, which goes with the payload. What was left out thereby grows until it is sent: it does not make its own scale.
Buffers, such as batch norm's statistics, go as they are: a variance that is a little wrong may be negative.

Source: Seide et al. 2014, Interspeech, for error feedback; Tang et al. 2019, arXiv:1905.05957 (DoubleSqueeze), for both
ways of it.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from splitlearn.compressors import Compressor, Payload
from splitlearn.config import check_goes_with, compressor_from
from splitlearn.errors import NonFiniteError, PayloadError, PeerError, UserError
from splitlearn.exchange.agreement import is_like, is_wire, like
from splitlearn.seeds import derive

Weights = dict[str, Tensor]
Coded = tuple[Tensor, Tensor, Weights]  # a payload, the scales of the parameters in it, and the buffers
LEAST_SCALE = 0.01  # of a tensor, by the root mean square of what is to be sent
ALONE = {"topology.average": ("epoch",), "membership.sample": (None,)}  # where all clients have one average


class Changes:
    """One end's: what it encodes, and what it decodes of others.

    Args:
        codec: of compressor@weights.
        seed: of the run.

    Attributes:
        left_out: what the payloads before leave out, (values,) float32; None where there was none.
    """

    def __init__(self, codec: Compressor, seed: int = 0):
        self.codec, self.seed = codec, seed
        self.left_out: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """What this end goes on with."""
        return {} if self.left_out is None else {"left_out": self.left_out}

    def encode(
        self, weights: Weights, average: Weights, parameters: list[str], sender: str, epoch: int
    ) -> tuple[Coded, Weights, Tensor]:
        """What is sent of weights, what arrives, and what is left out then, which `left_out` is to be once it is sent.

        Raises:
            UserError: parameters are NaN or Inf.
        """
        new = _flat(weights, parameters) - _flat(average, parameters)
        change = new if self.left_out is None else new + self.left_out
        sizes = _sizes(average, parameters)
        scales = torch.maximum(_rms(new, sizes), LEAST_SCALE * _rms(change, sizes))
        scales[scales == 0] = 1.0
        self.codec.seed(derive(self.seed, "weights", sender, epoch))
        try:
            payload = self.codec.encode(change / _each(scales, sizes))
        except NonFiniteError as error:
            raise UserError(
                f"the weights of {sender} after epoch {epoch} are not finite ({error}): training diverged; lower"
                " optimizer.lr"
            ) from None
        buffers = {name: weights[name] for name in average if name not in parameters}
        decoded = self.codec.decode(payload) * _each(scales, sizes)
        arrived = _added(average, parameters, decoded) | buffers
        return (payload.tensor, scales, buffers), arrived, change - decoded

    def decode(self, coded: Any, average: Weights, parameters: list[str], sender: str) -> Weights:
        """The weights that `coded` stands for, as it came from `sender`.

        Raises:
            PeerError: it stands for none of this network's.
        """
        if flaw := _flaw_of(coded, average, parameters):
            raise PeerError(f"{sender} sent malformed weights: {flaw}")
        wire, scales, buffers = coded
        sizes = _sizes(average, parameters)
        try:
            shape = torch.Size([sum(sizes)])
            values = self.codec.decode(Payload.parse(wire), "cpu", (shape, torch.float32))
        except PayloadError as error:
            raise PeerError(f"{sender} sent weights in a payload that {error}") from None
        return _added(average, parameters, values * _each(scales, sizes)) | buffers


def changes_of(cfg: DictConfig) -> Changes | None:
    """As the configuration says; None where weights go as they are."""
    codec = compressor_from(cfg, "weights") if "weights" in cfg else None
    return None if codec is None or codec.is_exact else Changes(codec, cfg.seed)


def check(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: the codec of weights is none for them, or clients have weights of their own.
    """
    if (changes := changes_of(cfg)) is None:
        return
    name = changes.codec.name
    if changes.codec.keeps_state or changes.codec.is_linked:
        raise UserError(
            f"compressor@weights={name} goes by what it sent before of a map, which weights are not: choose another,"
            " such as uq"
        )
    check_goes_with(cfg, f"compressor@weights={name}", ALONE, otherwise=", or compressor@weights=none")


def _flaw_of(coded: Any, average: Weights, parameters: list[str]) -> str | None:
    """What is wrong with what came as changes of an average; None where nothing is."""
    if not isinstance(coded, tuple) or len(coded) != 3:
        return "it does not have a payload, scales and buffers"
    wire, scales, buffers = coded
    if not is_wire(wire):
        return "the payload is no 1-D uint8 tensor on the CPU"
    if not is_like(scales, (torch.Size([len(parameters)]), torch.float32)) or not scales.isfinite().all():
        return "its scales are no finite number for each parameter"
    if not isinstance(buffers, dict) or buffers.keys() != average.keys() - parameters:
        return "its buffers are not those of the client segment"
    if not all(is_like(value, like(average[name])) for name, value in buffers.items()):
        return "its buffers have other shapes or dtypes"
    return None


def _sizes(weights: Weights, names: list[str]) -> list[int]:
    return [weights[name].numel() for name in names]


def _flat(weights: Weights, names: list[str]) -> Tensor:
    return torch.cat([weights[name].reshape(-1).float() for name in names])


def _rms(values: Tensor, sizes: list[int]) -> Tensor:
    """The root mean square of each tensor."""
    return torch.stack([part.square().mean().sqrt() for part in values.split(sizes)])


def _each(scales: Tensor, sizes: list[int]) -> Tensor:
    """The scale of each value."""
    return scales.repeat_interleave(torch.tensor(sizes))


def _added(average: Weights, names: list[str], change: Tensor) -> Weights:
    parts = change.split(_sizes(average, names))
    return {
        name: average[name] + part.view_as(average[name]).to(average[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }
