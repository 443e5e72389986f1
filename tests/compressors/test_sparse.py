import pytest
import torch
from wires import to_bytes, with_checksum

from splitlearn.compressors import Payload, RandomTopKSparsifier, TopKSparsifier, sparse
from splitlearn.errors import PayloadError


def randn(numel: int) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 0.99])
def test_top_k_is_exact_and_the_rest_is_zero(ratio):
    x = randn(1234)
    compressor = TopKSparsifier(ratio=ratio)
    decoded = compressor.decode(compressor.encode(x))
    k = int((1 - ratio) * 1234 + 1e-6)
    kept = x.abs() >= x.abs().sort(descending=True).values[k - 1]
    assert torch.equal(decoded, torch.where(kept, x, 0))


@pytest.mark.parametrize(
    ("ratio", "positions_nbytes"),
    [(0.95875, 1250), (0.9687, 1250), (0.9688, 4 * 312), (0.99, 4 * 100)],  # bitmap up to 96.875 %, then indices
)
def test_positions_take_the_smaller_form(ratio, positions_nbytes):
    values, positions = TopKSparsifier(ratio=ratio).encode(randn(10_000)).sections
    assert positions.numel() == positions_nbytes
    assert values.numel() == 4 * int((1 - ratio) * 10_000 + 1e-6)


def test_beyond_what_an_index_reaches_positions_are_a_bitmap(monkeypatch):
    assert TopKSparsifier(ratio=0.99).formula_bits((1 << 16, 1 << 16)) == 32 * (0.01 * 2**32 // 1) + 2**32
    monkeypatch.setattr(sparse, "MOST_INDEXED", 9_999)
    compressor, x = TopKSparsifier(ratio=0.99), randn(10_000)
    payload = compressor.encode(x)
    assert payload.sections[1].numel() == 1250
    assert int((compressor.decode(payload) == x).sum()) == 100


def test_indices_that_are_out_of_range_or_not_ascending_are_refused():
    compressor = TopKSparsifier(ratio=0.99)
    payload = compressor.encode(randn(400))
    indices = payload.sections[1].view(torch.int32)
    assert indices.numel() == 4
    wire = to_bytes(payload.tensor)
    for forged in ([0, 1, 2, 400], [-1, 1, 2, 3], [0, 2, 1, 3], [5, 5, 6, 7]):
        wire[-16:] = torch.tensor(forged, dtype=torch.int32).numpy().tobytes()
        with pytest.raises(PayloadError, match="positions"):
            compressor.decode(Payload.parse(with_checksum(wire)))


def test_a_bitmap_with_another_number_of_positions_is_refused():
    compressor = TopKSparsifier(ratio=0.5)
    wire = to_bytes(compressor.encode(randn(16)).tensor)
    wire[-1] ^= 1
    with pytest.raises(PayloadError, match="positions"):
        compressor.decode(Payload.parse(with_checksum(wire)))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
def test_randomised_top_k_draws_k_and_leaves_the_top_k_with_probability_alpha(alpha):
    x = randn(20_000)
    compressor = RandomTopKSparsifier(ratio=0.9, alpha=alpha)
    compressor.seed(1)
    positions = compressor.positions(x)
    top = TopKSparsifier(ratio=0.9).positions(x)
    assert positions.numel() == positions.unique().numel() == 2000
    outside = 1 - torch.isin(positions, top).float().mean().item()
    assert outside == pytest.approx(alpha, abs=4 * (alpha * (1 - alpha) / 2000) ** 0.5)


def test_draws_differ_and_the_evaluation_keeps_the_top_k():
    x = randn(5000)
    compressor = RandomTopKSparsifier(ratio=0.9, alpha=0.3)
    assert not torch.equal(compressor.positions(x), compressor.positions(x))
    evaluation = compressor.for_evaluation()
    assert torch.equal(evaluation.positions(x), TopKSparsifier(ratio=0.9).positions(x))
    compressor.decode(evaluation.encode(x))


def test_more_draws_than_there_are_others():
    compressor = RandomTopKSparsifier(ratio=0.1, alpha=1.0)
    assert compressor.positions(randn(50)).unique().numel() == 45


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_draws_come_to_an_end_soon_however_few_places_are_left(ratio, alpha, monkeypatch):
    rounds, randint = [], torch.randint
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: rounds.append(1) or randint(*args, **kwargs))
    compressor = RandomTopKSparsifier(ratio=ratio, alpha=alpha)
    compressor.seed(0)
    x = randn(1 << 13)
    positions = compressor.positions(x)
    assert len(positions.unique()) == len(positions) == sparse.num_kept(ratio, x.numel())
    assert len(rounds) < 50
