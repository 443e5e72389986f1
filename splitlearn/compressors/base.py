"""What every compressor is: a dataclass whose fields are its options, with `encode` and `decode`.

To add one, put a file beside this one with a class that is decorated with `@register("name")`: its name becomes a
choice of the config groups `compressor` (uplink) and `compressor@downlink`, its fields become config keys, and the
tests that run over all registered compressors take it in. docs/extending.md shows a whole one.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from splitlearn.compressors import checking, transform
from splitlearn.compressors.checking import (  # noqa: F401  what compressors import from here
    check_choice,
    check_finite,
    check_lengths,
    check_range,
    num_kept,
)
from splitlearn.compressors.payload import DTYPES, Payload
from splitlearn.errors import PayloadError
from splitlearn.kernels import lossless

if TYPE_CHECKING:
    from splitlearn.compressors.trace import Trace

TABLE_NBYTES = 1 << 12

REGISTRY: dict[str, type[Compressor]] = {}
PRESETS: dict[str, tuple[type[Compressor], dict[str, object]]] = {}  # what may be chosen by name, and its options


def register(name: str):
    """Class decorator: makes a dataclass of `cls` and offers it as `compressor=name`."""

    def add(cls: type[Compressor]) -> type[Compressor]:
        for old, new in {"sections": "to_sections", "restore": "from_sections"}.items():
            if old in vars(cls):
                raise TypeError(f"{cls.__name__}.{old} is called {new} since version 0.2: rename it")
        cls = dataclasses.dataclass(cls)
        taken = {other.codec: other for other in REGISTRY.values()}
        if cls.codec in taken:
            raise ValueError(f"{cls.__name__} and {taken[cls.codec].__name__} both have codec = {cls.codec}")
        cls.name = name
        REGISTRY[name] = cls
        offer(name, cls)
        return cls

    return add


def offer(name: str, cls: type[Compressor], **options) -> None:
    """Offers `compressor=name`: the class with these options, the others at their defaults."""
    PRESETS[name] = cls, options


@dataclasses.dataclass
class Compressor(ABC):
    """Base of the compressors. A subclass has a `codec` number, `to_sections`, `from_sections` and `formula_bits`.

    Decoding gives back the shape and dtype that were encoded. Encoding works on any device, and only the payload
    crosses to the CPU. The bytes are the same whatever the device, but for uq, klt, linked and transforms, which go by
    sums of float32 that a device rounds in an order of its own.

    Args:
        lossless: "zstd" compresses each section further, for the same decoded tensor, unless it would not pay; "ans"
            does so too, or takes the entropy coder for codes where that is smaller; "none" sends them as they are.
        transform: "klt", "dct" or "hadamard" codes the tensor in another basis (see transform.py); "none" as it is.

    Attributes:
        keeper: of what there is to know of earlier tensors, such as a SharedBasis; the transform, unless a subclass has
            another.
    """

    codec: ClassVar[int]
    name: ClassVar[str]
    meets_target: ClassVar[bool] = False  # its size is a target that it comes near, not a formula
    checks_itself: ClassVar[bool] = False  # `to_sections` calls check_finite, on numbers that it needs anyway
    takes_transform: ClassVar[bool] = True
    has_basis: ClassVar[bool] = False  # that a gradient can come back in: leaves a trace (see trace.py)
    is_exact: ClassVar[bool] = False  # decodes to what was encoded
    is_linked: ClassVar[bool] = False  # sends a gradient in the basis of what it is of
    lossless: str = dataclasses.field(default="none", kw_only=True)
    transform: str = dataclasses.field(default="none", kw_only=True)

    def __post_init__(self):
        check_choice("lossless", self.lossless, lossless.STAGES)
        check_choice("transform", self.transform, tuple(transform.TRANSFORMS))
        if self.transform != "none" and not self.takes_transform:
            raise ValueError(f"transform={self.transform} does not go with compressor={self.name}: choose none")
        self.keeper = self._transform = transform.TRANSFORMS[self.transform]()

    @property
    def keeps_state(self) -> bool:
        """What it sends depends on what it sent before: each pair of ends has its own."""
        return self.keeper.keeps_state

    @abstractmethod
    def to_sections(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        """Sections (contiguous tensors, wide items first) and up to six parameter bytes for `x`, contiguous."""

    @abstractmethod
    def from_sections(self, sections: list[Tensor], payload: Payload) -> Tensor:
        """The decoded tensor, of payload.numel elements. `sections` are the payload's, on the device to decode on.

        They may be any bytes, and the shape any shape: `check_lengths` comes before anything is allocated.

        Raises:
            PayloadError: the sections do not fit the payload's shape and parameters.
        """

    def code_bits(self, params: tuple[int, ...]) -> tuple[int, ...]:
        """Widths of the codes in the last sections, each of one code for every element; for the entropy coder."""
        return ()

    @abstractmethod
    def formula_bits(self, shape: tuple[int, ...], value_bits: int = 32) -> float:
        """Bits for a tensor of this shape, with values of `value_bits` bits, by the paper's formula, without header."""

    @property
    def label(self) -> str:
        """Name and options for people, numbers and what is not the default: "ms ratio=0.99 bits=2"."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        shown = [
            f"{key}={'null' if value is None else value}"
            for key, value in options.items()
            if isinstance(value, int | float) or value != defaults[key]
        ]
        return " ".join([self.name, *shown])

    def for_evaluation(self) -> Compressor:
        """The compressor to evaluate through: this one, unless it is random; one that keeps state begins anew."""
        return dataclasses.replace(self) if self.keeps_state else self

    def seed(self, seed: int) -> None:
        """Sets the state of the random generator, for compressors that draw."""

    trace: ClassVar[Trace | None] = None
    """Of the tensor that was encoded or decoded last, for its gradient."""

    def linked_to(self, trace: Trace | None) -> Compressor:
        """The compressor for the gradient of a tensor that left this trace: this one, unless it is linked."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """What it knows of what it sent and received, of tensors and plain values; nothing changes them in place."""
        return self.keeper.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, its own or that of the other end's sender; from the beginning where it is empty."""
        self.keeper.load_state_dict(state)

    def flaw_of(self, state: Any, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a state that somebody sent, for tensors of this shape; None where nothing is."""
        return self.keeper.flaw_of(state, shape)

    learns: ClassVar[bool] = False  # goes by the gradients of what it sent

    def learn(self, gradient: Tensor) -> None:
        """The gradient of the tensor that was sent has come back, before any gain; only for one that learns."""

    def basis_nbytes(self, payload: Payload) -> int:
        """Of a payload's bytes, those of vectors of a basis."""
        return self._transform.basis_nbytes(payload.sections)

    def encode(self, x: Tensor) -> Payload:
        """Compresses a floating-point tensor of any shape with at least one element.

        Raises:
            NonFiniteError: `x` holds NaN or Inf.
            TypeError: `x` is of a dtype that no payload has.
        """
        if x.dtype not in DTYPES:
            raise TypeError(f"cannot encode {x.dtype}; one of {', '.join(map(str, DTYPES))} is needed")
        if x.numel() == 0:
            raise ValueError("cannot encode a tensor without elements")
        x = x.detach().contiguous()
        if self.transform != "none" or not self.checks_itself:
            check_finite(x)  # before a transform, which would hide what is not
        with torch.autocast(x.device.type, enabled=False):
            bits = checking.check_bits(type(self).__name__, self.formula_bits(x.shape, 8 * x.itemsize))
            y, of_transform = self._transform.forward(x, bits / x.numel())
        sections, params, shrunk = self.to_wire(y)
        return Payload.pack(self.codec, x, sections + of_transform, params, shrunk)

    def to_wire(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...], int]:
        """What `to_sections` gives, after the lossless stage, and which sections that shrank, a bit each."""
        with torch.autocast(x.device.type, enabled=False):  # what it computes is not a layer of the model's
            sections, params = checking.check_sections(type(self).__name__, self.to_sections(x))
        return self.shrunk(sections, params, x.shape)

    def shrunk(
        self, sections: list[Tensor], params: tuple[int, ...], shape: tuple[int, ...]
    ) -> tuple[list[Tensor], tuple[int, ...], int]:
        """Sections after the lossless stage, the parameters, and which sections it shrank, a bit each."""
        widths, mask = self.code_bits(params), 0
        widths = (0,) * (len(sections) - len(widths)) + widths
        for i, (section, bits) in enumerate(zip(sections, widths, strict=True)):
            if (smaller := lossless.shrink(section, self.lossless, bits, shape)) is not None:
                sections[i], mask = smaller, mask | 1 << i
        return sections, params, mask

    def decode(
        self,
        payload: Payload,
        device: torch.device | str = "cpu",
        expected: tuple[torch.Size, torch.dtype] | None = None,
    ) -> Tensor:
        """Restores the tensor of `payload` on `device`.

        Any bytes that `Payload.parse` took are safe to decode: what comes out has the payload's shape and dtype, though
        its values may be any, NaN and Inf among them. The memory that it takes is in proportion to that shape, which
        the sender chooses where none is expected: a few kilobytes may then stand for gigabytes.

        Args:
            payload: what was received.
            device: where the tensor is to be.
            expected: the shape and dtype that the tensor has to have, where they are known. They are compared before
                anything is allocated.

        Raises:
            PayloadError: the payload is another codec's, it is not of the expected shape and dtype, or its sections do
                not fit its shape.
        """
        if payload.codec != self.codec:
            raise PayloadError(f"is of codec {payload.codec}; {type(self).__name__} reads codec {self.codec}")
        if expected is not None:
            shape, dtype = expected
            if payload.shape != torch.Size(shape) or payload.dtype != dtype:
                raise PayloadError(
                    f"is a {payload.dtype} tensor of shape {tuple(payload.shape)};"
                    f" a {dtype} tensor of shape {tuple(shape)} is expected"
                )
        # No codec has a section that is larger than the tensor and a table.
        limit = payload.numel * payload.dtype.itemsize + TABLE_NBYTES
        sections = [
            (lossless.restore(section, limit) if payload.shrunk >> i & 1 else section).to(device)
            for i, section in enumerate(payload.sections)
        ]
        with torch.autocast(torch.device(device).type, enabled=False):
            sections, of_transform = self._transform.parted(sections)
            found = self.from_sections(sections, payload)
            found = checking.check_values(type(self).__name__, found, payload.numel, payload.dtype)
            return self._transform.inverse(found.reshape(payload.shape), of_transform)
