"""The bytes of payloads and the bits of decoded maps stay what they were before the compressors were made fast.

The checksums come from the first, plain implementation. The maps are made by integer arithmetic, so that no version of
a random generator changes them. They are long enough to be searched by sample and to be gone over in several blocks.
"""

import zlib

import pytest
import torch

from splitlearn.compressors import MaskSparsifier, Payload, TopKSparsifier, UniformQuantizer, blocks

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
    ("relu", "torch.float32"): (0xF63AD58F, 0xB913E7F1),
    ("relu", "torch.float16"): (0x88B678BE, 0x627A38B1),
    ("relu", "torch.bfloat16"): (0x1A5F8E89, 0xDD789E2C),
    ("relu", "torch.float64"): (0x0E2973B5, 0x7F7E0E04),
    ("signed", "torch.float32"): (0x7FF1A9B0, 0x1CEBD7DA),
    ("signed", "torch.float16"): (0x7391958A, 0xDB99A628),
    ("signed", "torch.bfloat16"): (0x19C2CF17, 0x198A380A),
    ("signed", "torch.float64"): (0x9EF43D77, 0x0E168DD6),
    ("ties", "torch.float32"): (0xB7D0F97A, 0x6C8B4F8E),
    ("ties", "torch.float16"): (0x5B11F968, 0xE64B583E),
    ("ties", "torch.bfloat16"): (0x5C21214C, 0x595F5D9D),
    ("ties", "torch.float64"): (0xDA5718BD, 0xEC1E7642),
    ("zeros", "torch.float32"): (0x26849759, 0x52F6CDB1),
    ("zeros", "torch.float16"): (0x2F7CC1F2, 0x441ACCA7),
    ("zeros", "torch.bfloat16"): (0xC066CE98, 0x441ACCA7),
    ("zeros", "torch.float64"): (0x3FF5FF85, 0x873FF5D0),
    ("constant", "torch.float32"): (0xDDE7E603, 0x2009A826),
    ("constant", "torch.float16"): (0x4A57BC16, 0x919E413F),
    ("constant", "torch.bfloat16"): (0x0E0C3813, 0x8598C69F),
    ("constant", "torch.float64"): (0xE6C5DDAA, 0x81FC4F1F),
    ("nearly all zero", "torch.float32"): (0x2AF8CE4C, 0xD77948C2),
    ("nearly all zero", "torch.float16"): (0x6082034D, 0x80ED168F),
    ("nearly all zero", "torch.bfloat16"): (0x42DEAB8F, 0x23E3E9CF),
    ("nearly all zero", "torch.float64"): (0x3296697D, 0x5C7C64AF),
}


def made(name: str) -> torch.Tensor:
    """A map of bell-shaped values, sums of four uniform ones each."""
    i = torch.arange(torch.Size(SHAPE).numel())
    uniform = sum((i * factor % 65521).float() / 65536 for factor in (40503, 30011, 12347, 50021))
    return MAPS[name]((uniform - 2) * 1.7).view(SHAPE)


def checksums(x: torch.Tensor) -> tuple[int, int]:
    """Of all payloads and of all decoded maps of `x`, over widths, roundings and scopes."""
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
        sent = zlib.crc32(payload.tensor.numpy(), sent)
        out = compressor.decode(Payload.parse(payload.tensor))
        decoded = zlib.crc32(out.reshape(-1).view(torch.uint8).numpy(), decoded)
    return sent, decoded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_bytes_are_unchanged(name, dtype, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 1 << 12)
    assert checksums(made(name).to(dtype)) == EXPECTED[name, str(dtype)]
