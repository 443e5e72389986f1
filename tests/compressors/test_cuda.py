"""The same bytes and decoded tensors on CUDA as on the CPU; of codecs that fit a basis, as few and as exact. Run with
`pytest -m gpu`."""

from copy import deepcopy
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
    compressor, other = deepcopy(compressor), deepcopy(compressor)
    compressor.seed(0)
    expected = compressor.encode(x)
    other.seed(0)
    found = other.encode(x.cuda())
    if compressor.has_basis:  # fitted to sums, whose last bits are of the device
        assert found.nbytes == pytest.approx(expected.nbytes, rel=0.02)
    else:
        assert torch.equal(found.tensor, expected.tensor)
    decoded, same = other.decode(Payload.parse(found.tensor), "cuda"), other.decode(found)
    assert decoded.is_cuda
    if compressor.has_basis:
        torch.testing.assert_close(decoded.cpu(), same, rtol=1e-2, atol=1e-4)
        error, usual = (float((one.double() - x.double()).norm()) for one in (same, compressor.decode(expected)))
        assert error == pytest.approx(usual, rel=0.02)
    else:
        assert torch.equal(decoded.cpu(), same)
