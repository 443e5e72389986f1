import pytest
import torch

from splitlearn.kernels.bits import pack, packed_nbytes, unpack


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_a_little_endian_bit_stream(bits):
    for num_codes in [*range(1, 18), 63, 64, 65, 1000, 100_003]:
        generator = torch.Generator().manual_seed(num_codes)
        codes = torch.randint(0, 2**bits, (num_codes,), dtype=torch.uint8, generator=generator)
        packed = pack(codes, bits)
        assert packed.dtype == torch.uint8
        assert packed.numel() == packed_nbytes(num_codes, bits) == -(-num_codes * bits // 8)
        assert torch.equal(unpack(packed, bits, num_codes), codes)
        if num_codes <= 1000:
            stream = sum(code << (position * bits) for position, code in enumerate(codes.tolist()))
            assert bytes(packed.tolist()) == stream.to_bytes(packed.numel(), "little")


@pytest.mark.parametrize("bits", range(1, 9))
def test_all_ones_and_all_zeros(bits):
    for code in (0, 2**bits - 1):
        codes = torch.full((29,), code, dtype=torch.uint8)
        assert torch.equal(unpack(pack(codes, bits), bits, 29), codes)
