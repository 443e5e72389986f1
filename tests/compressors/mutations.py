"""Payloads of every compressor, and what may happen to them on the way: chance, and peers that lie.

A mutation takes a generator of random numbers and two valid payloads, and gives bytes whose checksum is most likely
wrong. `wires.with_checksum` makes it right.
"""

import copy
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from math import prod
from random import Random

import torch
from wires import DTYPES, FIELDS, PREFIX_NBYTES, header_nbytes

from splitlearn.compressors import REGISTRY, Compressor

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (1, 1, 1, 1, 1, 1, 2, 3), (130,), (4, 2, 5, 7)]
TOKENS = (2, 20, 9)  # the first of each is larger by far
RARE = (5, 7, 80)  # few values are large
OTHER_OPTIONS = {  # of any compressor that has an option of this name
    "ratio": [0.0, 0.5, 0.9, 0.99],
    "bits": [1, 3, 4, 8],
    "scope": ["sample", "channel", "row"],
    "rounding": ["floor", "stochastic"],
    "alpha": [0.5],
    "levels": ["fitted"],
    "values": ["bf16", "fp16", "uint8", "int8"],
    "budget_bits": [2.3],
    "lossless": ["zstd", "ans"],
    "transform": ["klt"],
    "samples": [2, 3],
    "length": [1, 7],
    "groups": [3],
    "rank": [1],
    "weighted": [0.3],
    "matrix": ["channels"],
    "block": [64, 100],
    "scale": ["bf16"],
}
LARGE = [1 << 15, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


@dataclass(frozen=True)
class Sample:
    """A valid payload, its parts as they are on the wire, and a compressor that reads it."""

    compressor: Compressor
    wire: bytes
    shape: torch.Size
    dtype: torch.dtype
    sections: tuple[bytes, ...]


def variants(name: str) -> list[Compressor]:
    """The compressor with its default options, and with others, one at a time."""
    cls = REGISTRY[name]
    found = [cls()]
    for field in fields(cls):
        for value in OTHER_OPTIONS.get(field.name, []):
            try:
                found.append(cls(**{field.name: value}))
            except ValueError:  # not in the range of this one
                continue
    return found


def samples(compressor: Compressor) -> list[Sample]:
    """Over shapes and dtypes, signed and not."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in SHAPES:
        for dtype in DTYPES:
            signed = torch.randn(shape, generator=generator).to(dtype)
            found += [sample_of(compressor, signed), sample_of(compressor, signed.relu())]
            if compressor.keeps_state:  # and one that goes by what this end has
                own = copy.deepcopy(compressor)
                own.encode(signed)
                found.append(sample_of(own, signed, goes_on=True))
    tokens = torch.randn(TOKENS, generator=generator)
    tokens[:, 0] *= 100
    found.append(sample_of(compressor, tokens))
    if compressor.lossless == "ans":  # which is for more values
        found.append(sample_of(compressor, torch.randn(RARE, generator=generator) ** 5))
    return found


def sample_of(compressor: Compressor, x: torch.Tensor, goes_on: bool = False) -> Sample:
    if not goes_on:
        compressor.load_state_dict({})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "budget_bits")  # of tensors that are too small for one
        payload = compressor.encode(x)
    wire = payload.tensor.numpy().tobytes()
    num_sections = len(payload.sections)
    sections, start = [], header_nbytes(x.dim(), num_sections)
    for length in struct.unpack_from(f"<{num_sections}Q", wire, PREFIX_NBYTES + 4 * x.dim()):
        sections.append(wire[start : start + length])
        start += length
    return Sample(compressor, wire, x.shape, x.dtype, tuple(sections))


def assembled(prefix: bytes | bytearray, dims: list[int], lengths: list[int], body: bytes) -> bytearray:
    """A payload of these parts. Whether they fit one another is not looked at."""
    wire = bytearray(prefix) + struct.pack(f"<{len(dims)}I", *dims)
    wire += struct.pack(f"<{len(lengths)}Q", *(length % (1 << 64) for length in lengths))
    return wire + bytes(-len(wire) % 8) + body


# Mutations


def random_bytes(rng: Random, one: Sample, other: Sample) -> bytearray:
    wire = bytearray(rng.randbytes(rng.randrange(160)))
    kept = rng.choice((0, 5, 6, 8, 9, PREFIX_NBYTES))  # of a true header
    wire[:kept] = one.wire[:kept]
    return wire


def truncated(rng: Random, one: Sample, other: Sample) -> bytearray:
    return bytearray(one.wire[: rng.randrange(len(one.wire))])


def extended(rng: Random, one: Sample, other: Sample) -> bytearray:
    extra = rng.choice((bytes, rng.randbytes))(rng.randint(1, 40))
    if rng.random() < 0.5 or not one.sections:
        return bytearray(one.wire + extra)
    # The last section is longer, and the header says so.
    *lengths, last = map(len, one.sections)
    return assembled(
        one.wire[:PREFIX_NBYTES], list(one.shape), [*lengths, last + len(extra)], b"".join(one.sections) + extra
    )


def bits_flipped(rng: Random, one: Sample, other: Sample) -> bytearray:
    wire = bytearray(one.wire)
    for _ in range(rng.choice((1, 1, 2, 8))):
        bit = rng.randrange(8 * len(wire))
        wire[bit // 8] ^= 1 << bit % 8
    return wire


def bytes_replaced(rng: Random, one: Sample, other: Sample) -> bytearray:
    wire = bytearray(one.wire)
    start = rng.randrange(len(wire)) if rng.random() < 0.5 else header_nbytes(len(one.shape), len(one.sections))
    for _ in range(rng.choice((1, 2, 4, 16))):
        if start < len(wire):
            wire[rng.randrange(start, len(wire))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return wire


def sections_swapped(rng: Random, one: Sample, other: Sample) -> bytearray:
    sections = list(one.sections)
    rng.shuffle(sections)
    # Half of the headers tell the lengths of before.
    told = sections if rng.random() < 0.5 else one.sections
    return assembled(one.wire[:PREFIX_NBYTES], list(one.shape), [len(section) for section in told], b"".join(sections))


def spliced(rng: Random, one: Sample, other: Sample) -> bytearray:
    if rng.random() < 0.5:
        return bytearray(one.wire[: rng.randint(0, len(one.wire))] + other.wire[rng.randint(0, len(other.wire)) :])
    # One's prefix and shape, the other's sections with their lengths.
    prefix = bytearray(one.wire[:PREFIX_NBYTES])
    prefix[FIELDS["num_sections"][0]] = other.wire[FIELDS["num_sections"][0]]
    return assembled(prefix, list(one.shape), [len(section) for section in other.sections], b"".join(other.sections))


def resized(rng: Random, one: Sample, other: Sample) -> bytearray:
    """Another shape and sections of other lengths, which now and then fit each other: what a forger would make."""
    prefix = bytearray(one.wire[:PREFIX_NBYTES])
    dims = [rng.choice((0, 1, 1, 2, 3, 5, 8, 16)) for _ in range(rng.randrange(5))]
    numel = prod(dims)
    prefix[FIELDS["num_dims"][0]] = len(dims)
    sections = []
    for section in one.sections:
        width = rng.randint(1, 8)
        length = rng.choice((0, len(section), one.dtype.itemsize, numel * one.dtype.itemsize, (numel * width + 7) // 8))
        more = rng.choice((bytes(length), b"\xff" * length, section * (length // max(1, len(section)) + 1)))
        sections.append((section + more)[:length] if rng.random() < 0.5 else more[:length])
    return assembled(prefix, dims, [len(section) for section in sections], b"".join(sections))


def lying_header(rng: Random, one: Sample, other: Sample) -> bytearray:
    prefix, dims = bytearray(one.wire[:PREFIX_NBYTES]), list(one.shape)
    lengths = [len(section) for section in one.sections]
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(LIES)(rng, prefix, dims, lengths)
    return assembled(prefix, dims, lengths, b"".join(one.sections))


MUTATIONS: dict[str, Callable[[Random, Sample, Sample], bytearray]] = {
    "random": random_bytes,
    "truncated": truncated,
    "extended": extended,
    "bits flipped": bits_flipped,
    "bytes replaced": bytes_replaced,
    "sections swapped": sections_swapped,
    "spliced": spliced,
    "resized": resized,
    "lying header": lying_header,
}


# Lies: each changes the prefix, the dimensions or the lengths in place.


def one_dimension(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    if dims:
        i = rng.randrange(len(dims))
        dims[i] = rng.choice((0, 1, dims[i] - 1, dims[i] + 1, 2 * dims[i], dims[i] // 2, rng.choice(LARGE)))
        dims[i] = min(max(dims[i], 0), (1 << 32) - 1)


def huge_shape(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    dims[:] = [rng.choice([1, 2, *LARGE]) for _ in range(rng.randint(1, 8))]
    prefix[FIELDS["num_dims"][0]] = len(dims)


def same_size(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    rng.shuffle(dims)
    dims += [1] * rng.randrange(3)
    prefix[FIELDS["num_dims"][0]] = len(dims)


def number_of_dimensions(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    prefix[FIELDS["num_dims"][0]] = rng.choice((0, len(dims) + 1, 8, 9, 255))


def dtype_number(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    prefix[FIELDS["dtype"][0]] = rng.choice((*range(len(DTYPES) + 1), 255))


def codec_number(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    prefix[FIELDS["codec"][0]] = rng.choice([cls.codec for cls in REGISTRY.values()] + [255])


def parameter(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    start, size = FIELDS["params"]
    i = start + rng.randrange(size)
    prefix[i] = rng.choice((0, prefix[i] ^ 1, prefix[i] ^ 2, prefix[i] + 1 & 255, rng.randrange(256)))


def any_byte(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    prefix[rng.randrange(CHECKED_NBYTES)] = rng.randrange(256)


def one_length(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    if lengths:
        i = rng.randrange(len(lengths))
        lengths[i] = rng.choice((0, abs(lengths[i] - 1), lengths[i] + 1, 1 << 31, 1 << 63, (1 << 64) - 1))


def moved_border(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    if len(lengths) > 1:
        i = rng.randrange(len(lengths) - 1)
        whole = lengths[i] + lengths[i + 1]
        lengths[i] = min(rng.choice((0, whole, lengths[i] + 1, lengths[i] + 4, whole // 2)), whole)
        lengths[i + 1] = whole - lengths[i]


def number_of_sections(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    change = rng.randrange(4)
    if change == 0:
        lengths[:] = [sum(lengths)]
    elif change == 1:
        lengths.insert(rng.randint(0, len(lengths)), 0)
    elif change == 2:
        lengths.clear()
    prefix[FIELDS["num_sections"][0]] = rng.choice((0, 1, 8, 9, 255)) if change == 3 else len(lengths)


def lengths_that_wrap(rng: Random, prefix: bytearray, dims: list[int], lengths: list[int]) -> None:
    if len(lengths) > 1:
        whole = sum(lengths)
        lengths[:2] = [1 << 63, (1 << 63) + whole % (1 << 62)]


CHECKED_NBYTES = FIELDS["checksum"][0]
LIES = [
    one_dimension,
    one_dimension,
    huge_shape,
    same_size,
    number_of_dimensions,
    dtype_number,
    codec_number,
    parameter,
    any_byte,
    one_length,
    moved_border,
    number_of_sections,
    lengths_that_wrap,
]
