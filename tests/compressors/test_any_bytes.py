"""Whatever arrives is refused or decoded to what it states; whatever is finite comes back finite."""

import subprocess
import sys
import tracemalloc
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import MUTATIONS, assembled, sample_of, samples, variants
from torch.utils._python_dispatch import TorchDispatchMode
from wires import DTYPES, FIELDS, PREFIX_NBYTES, mended, stated, to_tensor, with_checksum

from splitlearn.compressors import REGISTRY, Payload
from splitlearn.errors import PayloadError

pytestmark = pytest.mark.filterwarnings("ignore:budget_bits")  # of tensors that are too small for one
ROOT = Path(__file__).parents[2]
PROPERTY = settings(deadline=None, max_examples=30, derandomize=True, database=None)
EXTREMES = {
    torch.float32: [3.4028234663852886e38, 3e38, 1.1754943508222875e-38, 1.401298464324817e-45],
    torch.float16: [65504.0, 6.103515625e-05, 5.960464477539063e-08],
    torch.bfloat16: [3.3895313892515355e38, 1.1754943508222875e-38, 9.183549615799121e-41],
    torch.float64: [1.7976931348623157e308, 1e308, 2.2250738585072014e-308, 5e-324],
}


@pytest.fixture(scope="module", params=list(REGISTRY))
def name(request) -> str:
    return request.param


def tensors() -> st.SearchStrategy[torch.Tensor]:
    return st.sampled_from(DTYPES).flatmap(tensors_of)


def tensors_of(dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    top = torch.finfo(dtype).max
    extremes = [sign * value for value in EXTREMES[dtype] for sign in (1, -1)]
    values = st.sampled_from([0.0, -0.0, 1.0, *extremes]) | st.floats(-top, top)
    shapes = st.lists(st.integers(1, 6), max_size=4).filter(lambda shape: prod(shape) <= 64)
    return shapes.flatmap(
        lambda shape: st.lists(values, min_size=prod(shape), max_size=prod(shape)).map(
            lambda found: torch.tensor(found, dtype=torch.float64).to(dtype).view(shape)
        )
    )


@PROPERTY
@given(tail=st.binary(max_size=200), kept=st.integers(0, PREFIX_NBYTES))
def test_arbitrary_bytes_are_refused(name, tail, kept):
    wire = bytes(REGISTRY[name]().encode(torch.ones(3)).tensor.numpy())[:kept] + tail
    with pytest.raises(PayloadError):
        REGISTRY[name]().decode(Payload.parse(to_tensor(wire)))


@pytest.fixture(scope="module")
def valid(name):
    return [sample for compressor in variants(name) for sample in samples(compressor)]


@pytest.mark.parametrize("mutation", MUTATIONS)
@PROPERTY
@given(data=st.data())
def test_a_mutated_payload_with_the_right_checksum_is_refused_or_decodes_to_what_it_states(mutation, valid, data):
    one, other = (data.draw(st.sampled_from(valid)) for _ in range(2))
    wire = MUTATIONS[mutation](data.draw(st.randoms(use_true_random=False)), one, other)
    if len(wire) >= PREFIX_NBYTES:
        wire = mended(wire)
    try:
        decoded = one.compressor.decode(Payload.parse(to_tensor(wire)))
    except PayloadError:
        return
    assert (decoded.shape, decoded.dtype) == stated(wire)


@PROPERTY
@given(x=tensors(), data=st.data())
def test_what_is_finite_comes_back_finite(name, x, data):
    compressor = data.draw(st.sampled_from(variants(name)))
    decoded = compressor.decode(Payload.parse(compressor.encode(x).tensor), expected=(x.shape, x.dtype))
    assert decoded.shape == x.shape and decoded.dtype == x.dtype
    assert decoded.isfinite().all()


@pytest.mark.parametrize(("dtype", "value"), [(dtype, x) for dtype in DTYPES for x in EXTREMES[dtype]], ids=str)
def test_extremes_come_back_finite(name, dtype, value):
    for compressor in variants(name):
        for low in (-1, -0.5, 0.0, 1 / 3):
            x = torch.tensor([value, low * value, 0.2 * value, value], dtype=torch.float64).to(dtype)
            assert compressor.decode(compressor.encode(x)).isfinite().all(), (compressor, x)


# What the receiver knows


def test_another_shape_or_dtype_than_expected_is_refused(name):
    compressor = REGISTRY[name]()
    payload = compressor.encode(torch.ones(2, 3))
    assert compressor.decode(payload, expected=(torch.Size([2, 3]), torch.float32)).shape == (2, 3)
    for expected in (((3, 2), torch.float32), ((2, 3), torch.float16), ((6,), torch.float32)):
        with pytest.raises(PayloadError) as error:
            compressor.decode(payload, expected=expected)
        for part in (payload.dtype, (2, 3), expected[1], tuple(expected[0])):
            assert str(part) in str(error.value)


class Largest(TorchDispatchMode):
    """Keeps the size in bytes of the largest memory that an operation of torch gave."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, (list, tuple)) else [results]:
            if isinstance(result, torch.Tensor):
                self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return results


@pytest.mark.parametrize("dims", [[1 << 31], [1 << 16, 1 << 15], [1 << 31, 1 << 30], [1, 1 << 20]], ids=str)
def test_a_huge_shape_is_refused_without_memory_for_it(name, dims):
    for compressor in variants(name):
        for x in (torch.ones(300), -torch.ones(300).double()):
            sample = sample_of(compressor, x)
            prefix = bytearray(sample.wire[:PREFIX_NBYTES])
            prefix[FIELDS["num_dims"][0]] = len(dims)
            body = b"".join(sample.sections)
            wire = with_checksum(assembled(prefix, dims, [len(section) for section in sample.sections], body))
            for _ in range(2):  # the first time includes what torch imports
                tracemalloc.start()  # numpy's memory
                with Largest() as largest, pytest.raises(PayloadError):
                    compressor.decode(Payload.parse(wire))
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert largest.nbytes < 1 << 17 and peak < 1 << 17


@pytest.mark.slow
def test_the_fuzz_script():
    command = [sys.executable, str(ROOT / "scripts" / "benchmarks" / "fuzz_payloads.py"), "--count", "2000"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "anything else: 0" in result.stdout
