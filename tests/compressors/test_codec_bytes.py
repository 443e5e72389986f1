"""The sections of payloads and the bits of decoded maps stay what they were before the compressors were made fast.

The checksums come from the first, plain implementation. The maps are made by integer arithmetic, so that no version of
a random generator changes them. They are long enough to be searched by sample and to be gone over in several blocks.
"""

import zlib

import pytest
import torch

from splitlearn.compressors import MaskSparsifier, Payload, TopKSparsifier, UniformQuantizer
from splitlearn.kernels import blocks

SHAPE = (7, 11, 23, 29)
MAPS = {
    "relu": lambda x: x.relu(),
    "signed": lambda x: x,
    "ties": lambda x: (x * 2).round(),
    "zeros": lambda x: torch.zeros_like(x),
    "constant": lambda x: torch.full_like(x, 0.7),
    "nearly all zero": lambda x: torch.where(x.abs() > 2.9, x, 0.0),
}
EXPECTED = {
    ("relu", "torch.float32"): (0xEA5938AB, 0xB913E7F1),
    ("relu", "torch.float16"): (0x842B5DE8, 0x627A38B1),
    ("relu", "torch.bfloat16"): (0x8201B644, 0xDD789E2C),
    ("relu", "torch.float64"): (0x94ECCB96, 0x7F7E0E04),
    ("signed", "torch.float32"): (0xEE54B736, 0x1CEBD7DA),
    ("signed", "torch.float16"): (0xC893DB70, 0xDB99A628),
    ("signed", "torch.bfloat16"): (0x9155EFB9, 0x198A380A),
    ("signed", "torch.float64"): (0xFEB2B5EB, 0x0E168DD6),
    ("ties", "torch.float32"): (0x3AB67100, 0x6C8B4F8E),
    ("ties", "torch.float16"): (0x03B6B4AA, 0xE64B583E),
    ("ties", "torch.bfloat16"): (0x7AE67819, 0x595F5D9D),
    ("ties", "torch.float64"): (0xDAAC0B4D, 0xEC1E7642),
    ("zeros", "torch.float32"): (0xE4F7353E, 0x52F6CDB1),
    ("zeros", "torch.float16"): (0xD0366D04, 0x441ACCA7),
    ("zeros", "torch.bfloat16"): (0xD0366D04, 0x441ACCA7),
    ("zeros", "torch.float64"): (0x1CB0AA73, 0x873FF5D0),
    ("constant", "torch.float32"): (0x86D106CF, 0x2009A826),
    ("constant", "torch.float16"): (0x37FDBE54, 0x919E413F),
    ("constant", "torch.bfloat16"): (0x578F92F6, 0x8598C69F),
    ("constant", "torch.float64"): (0xEB646C02, 0x81FC4F1F),
    ("nearly all zero", "torch.float32"): (0xDA67A36E, 0xD77948C2),
    ("nearly all zero", "torch.float16"): (0xCD36C6E4, 0x80ED168F),
    ("nearly all zero", "torch.bfloat16"): (0x43BD7C90, 0x23E3E9CF),
    ("nearly all zero", "torch.float64"): (0x44273947, 0x5C7C64AF),
}


def made(name: str) -> torch.Tensor:
    """A map of bell-shaped values, sums of four uniform ones each."""
    i = torch.arange(torch.Size(SHAPE).numel())
    uniform = sum((i * factor % 65521).float() / 65536 for factor in (40503, 30011, 12347, 50021))
    return MAPS[name]((uniform - 2) * 1.7).view(SHAPE)


def checksums(x: torch.Tensor) -> tuple[int, int]:
    """Of all sections and of all decoded maps of `x`, over widths, roundings and scopes."""
    sent = decoded = 0
    some = [
        MaskSparsifier(bits=bits, rounding=rounding, scope=scope)
        for bits in (1, 2, 3, 5, 8)
        for rounding in ("nearest", "floor")
        for scope in ("batch", "sample")
    ]
    some += [UniformQuantizer(bits=bits) for bits in (1, 3, 4, 6)]
    some += [TopKSparsifier(ratio=ratio) for ratio in (0.95875, 0.99)]
    for compressor in some:
        payload = compressor.encode(x)
        for section in payload.sections:
            sent = zlib.crc32(section.numpy(), sent)
        out = compressor.decode(Payload.parse(payload.tensor))
        decoded = zlib.crc32(out.reshape(-1).view(torch.uint8).numpy(), decoded)
    return sent, decoded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_sections_and_decoded_maps_are_unchanged(name, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 1 << 12)
    assert checksums(made(name).to(dtype)) == EXPECTED[name, str(dtype)]
