import pytest
import torch

from splitlearn.exchange.channel import relative_error


@pytest.mark.parametrize(
    "decoded, original, expected",
    [
        ([3.0, 0.0], [3.0, 4.0], 0.8),
        ([0.0, 0.0], [3.0, 4.0], 1.0),
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([6.0, 8.0], [-3.0, -4.0], 3.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 2.0], [0.0, 0.0], 1.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_relative_error(decoded, original, expected, dtype):
    error = relative_error(torch.tensor(decoded, dtype=dtype), torch.tensor(original, dtype=dtype))
    assert isinstance(error, float) and error == pytest.approx(expected, rel=1e-12)
