"""int8 blockwise: as a plain loop over the blocks in numpy gives it, and within half a step."""

import numpy as np
import pytest
import torch

from splitlearn.compressors import Payload
from splitlearn.compressors.int8 import BlockwiseInt8
from splitlearn.errors import PayloadError
from splitlearn.kernels import blocks

X = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0)) ** 3


def through(compressor: BlockwiseInt8, x: torch.Tensor) -> torch.Tensor:
    return compressor.decode(Payload.parse(compressor.encode(x).tensor))


@pytest.mark.parametrize("block", [64, 100, 1000, 4096])
@pytest.mark.parametrize("cpu_block", [1 << 19, 128])
def test_it_is_a_loop_over_the_blocks(block, cpu_block, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", cpu_block)
    values, expected = X.numpy().reshape(-1), []
    for start in range(0, values.size, block):
        part = values[start : start + block]
        scale = np.abs(part).max()
        codes = np.rint(part / scale * np.float32(127))
        expected.append((codes / 127).astype(np.float32) * scale)
    assert np.array_equal(through(BlockwiseInt8(block), X).numpy().reshape(-1), np.concatenate(expected))


@pytest.mark.parametrize(("scale", "bound"), [("fp32", 1 / 254), ("bf16", 1 / 252)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_an_error_is_at_most_half_a_step_of_its_block(scale, bound, dtype):
    x = X.to(dtype)
    error = (through(BlockwiseInt8(64, scale), x).double() - x.double()).abs().view(-1)
    for start in range(0, x.numel(), 64):
        largest = x.view(-1)[start : start + 64].double().abs().max()
        assert error[start : start + 64].max() <= largest * (bound + torch.finfo(dtype).eps)


def test_a_large_value_costs_only_its_block():
    x = torch.cat([X.view(-1)[:640], torch.tensor([1e6])])
    assert (through(BlockwiseInt8(64), x)[:640] - x[:640]).norm() < 0.02 * x[:640].norm()
    assert through(BlockwiseInt8(1000), x)[:640].count_nonzero() == 0


def test_the_bytes_are_a_code_a_value_and_a_scale_a_block():
    for scale, nbytes in (("fp32", 4), ("bf16", 2)):
        scales, codes = BlockwiseInt8(100, scale).encode(X).sections
        assert (scales.numel(), codes.numel()) == (11 * nbytes, 1050)


def test_other_options_are_refused():
    payload = BlockwiseInt8(300).encode(X)
    for other in (BlockwiseInt8(44 + 256 * 2), BlockwiseInt8(), BlockwiseInt8(300, "bf16")):
        with pytest.raises(PayloadError, match=f"blocks of 300 .* block={other.block}, scale={other.scale}"):
            other.decode(payload)


@pytest.mark.parametrize("options", [{"block": 63}, {"block": 4097}, {"scale": "fp16"}], ids=str)
def test_options_out_of_range_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        BlockwiseInt8(**options)
