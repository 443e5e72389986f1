"""The same bytes and the same decoded tensors on CUDA as on the CPU. Run with `pytest -m gpu`."""

from dataclasses import replace

import pytest
import torch

from splitlearn.compressors import REGISTRY, MaskSparsifier, Payload
from splitlearn.compressors.uniform import EntropyCodedQuantizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
OURS = MaskSparsifier(levels="fitted", values="uint8", lossless="zstd")
COMPRESSORS = [
    *(cls() for cls in REGISTRY.values()),
    OURS,
    *(replace(OURS, **options) for options in ({"lossless": "ans"}, {"values": "fp16"}, {"budget_bits": 2.3})),
    *(MaskSparsifier(**options) for options in ({"scope": "sample"}, {"scope": "row"}, {"bits": 5})),
    MaskSparsifier(lossless="ans"),  # signs of what is not zero
]


def test_huge_tokens_go_apart_on_cuda_too():
    x = torch.randn(4, 64, 96, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 300
    found = EntropyCodedQuantizer().encode(x.cuda())
    assert torch.equal(found.tensor, EntropyCodedQuantizer().encode(x).tensor)
    assert torch.equal(EntropyCodedQuantizer().decode(found, "cuda")[:, 0].cpu(), x[:, 0].bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("signed", [False, True], ids=["post-ReLU", "signed"])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda compressor: compressor.label)
def test_cuda_equals_cpu(compressor, signed, dtype):
    x = torch.randn(32, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    x = (x if signed else x.relu()).to(dtype)
    compressor.seed(0)
    expected = compressor.encode(x)
    compressor.seed(0)
    found = compressor.encode(x.cuda())
    assert torch.equal(found.tensor, expected.tensor)
    decoded = compressor.decode(Payload.parse(found.tensor), "cuda")
    assert decoded.is_cuda and torch.equal(decoded.cpu(), compressor.decode(expected))
