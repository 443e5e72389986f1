"""A channel: one kind of tensor that goes one way over a cut, with its codec, its random stream, and what it costs.

An exchange says which channels it has (`ChannelSpec`), and the configuration which codec each one has. What goes over
them for one batch is its `Passage` (see passage.py), which keeps one `Transfer` for every payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from splitlearn import private
from splitlearn.compressors import Compressor
from splitlearn.defences import Defence
from splitlearn.errors import NonFiniteError


@dataclass(frozen=True)
class ChannelSpec:
    """What an exchange says of one of its channels.

    Attributes:
        name: as the exchange calls it; bytes of an epoch are reported as <name>_<way>_bytes.
        way: "up", from client to server, or "down".
        title: for people.
        config: the config key of its codec.
        key: what it is called in the steps and the summary of a run's metrics; names its random stream.
        cut: which cut it crosses, from 0.
        back: name of the channel that the gradient of what it carries comes back on; None for a gradient.
        has_lengths: the lengths of samples cross beside it, where they differ and its map has a row for each position.
    """

    name: str
    way: str
    title: str
    config: str
    key: str
    cut: int = 0
    back: str | None = None
    has_lengths: bool = False

    @property
    def is_of_samples(self) -> bool:
        """Whether it carries what a client makes of its samples: of that the change can be sent."""
        return self.config == "compressor"

    @property
    def traffic(self) -> str:
        return f"{self.name}_{self.way}"


@dataclass
class Transfer:
    """One payload on a channel.

    Attributes:
        channel: its name.
        num_bytes: that were sent.
        raw_bytes: of the tensor in memory; where a bottleneck made it smaller, of the one before.
        formula_bits: by the codec's formula, without header.
        error: ‖decoded - original‖₂ / ‖original‖₂, where it was measured.
        basis_bytes: of num_bytes, those of vectors of a basis.
        rms: root mean square of what was sent, or of what was decoded of it, where the error was measured.
    """

    channel: str
    num_bytes: int
    raw_bytes: int
    formula_bits: float
    error: float | None = None
    basis_bytes: int = 0
    rms: float | None = None


class Channel:
    """A channel of a run.

    Args:
        spec: what the exchange says of it.
        codec: as the configuration says; of one that keeps state, each client has its own (see codecs.py).
        is_compressed_in_evaluation: else tensors cross as they are then.
        backward: what is done to the gradient that comes back (see wayback.py).
        seed: of the run.
        defences: that act on it, by name, one after the other.
        delta: how both ends keep the latest map of each training sample, where the change is sent (see latest.py).
        secret_file: what defences draw is named by the secret in it; None: by the seed, which all ranks know.

    Attributes:
        shape: of one sample's tensor, as the cut gives it; of a ragged one's row. Set once the network is known.
        is_ragged: samples differ in length, and only the rows that they have cross (see ragged.py).
        kept: how many channels cross, and of how many, with a bottleneck.
        dtype: of a tensor that crosses.
        has_gradient: comes back; not where nothing before the cut is trained.
    """

    def __init__(
        self,
        spec: ChannelSpec,
        codec: Compressor,
        is_compressed_in_evaluation: bool,
        backward: str,
        seed: int,
        defences: dict[str, Defence],
        delta: str | None = None,
        secret_file: str | None = None,
    ):
        self.spec, self.codec, self.backward, self.seed, self.delta = spec, codec, backward, seed, delta
        self.defences, self._secret_file = defences, secret_file
        self.is_compressed_in_evaluation = is_compressed_in_evaluation
        self.shape: tuple[int, ...] = ()
        self.is_ragged = False
        self.kept = 1, 1
        self.dtype = torch.float32
        self.has_gradient = spec.back is not None

    @cached_property
    def secret(self) -> bytes:
        """What defences draw by. Raises as private.read does."""
        return private.read(self._secret_file, "secret_file") if self._secret_file else str(self.seed).encode()

    def expected(self, num_samples: int) -> tuple[torch.Size, torch.dtype]:
        """What a tensor of `num_samples` samples has to be like."""
        return torch.Size((num_samples, *self.shape)), self.dtype


def claims_of(channels: dict[str, Channel], num_epochs: int, most: int) -> dict[str, float]:
    """What the defences of channels prove of a sample that crosses so often, by name (see Defence.claims)."""
    named = [pair for channel in channels.values() for pair in channel.defences.items()]
    return {f"{name}_{key}": value for name, one in named for key, value in one.claims(num_epochs, most).items()}


def relative_error(decoded: Tensor, original: Tensor) -> float:
    """‖decoded - original‖₂ / ‖original‖₂; 0 for a zero original that was decoded exactly."""
    decoded, original = decoded.detach().double(), original.detach().double()
    norm = original.norm()
    error = (decoded - original).norm()
    return (error / norm).item() if norm > 0 else float(error > 0)


def rms(x: Tensor) -> float:
    """Root mean square."""
    return x.detach().double().square().mean().sqrt().item()


def learn_from(loss: Tensor) -> None:
    """Adds to the gradients of what trains on this end, if anything does."""
    if loss.requires_grad:
        loss.backward()


def require_finite(loss: Tensor) -> Tensor:
    """
    Raises:
        NonFiniteError: the loss is NaN or Inf.
    """
    if not loss.isfinite():
        raise NonFiniteError(f"its loss is {loss.item()}")
    return loss
