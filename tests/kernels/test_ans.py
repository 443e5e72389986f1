import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlearn.errors import PayloadError
from splitlearn.kernels import ans, coded, laplace

PROPERTY = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def drawn(seed: int, rows: int, columns: int, spread: float, bands: int = 1, samples: int = 1) -> np.ndarray:
    """Symbols of Laplacian integers whose spread differs from row to row, from band to band, and between samples."""
    rng = np.random.default_rng(seed)
    scales = (np.linspace(2, 0, rows), np.geomspace(1, 0.1, bands), rng.lognormal(size=samples))
    scale = spread * np.prod(np.meshgrid(*scales, indexing="ij"), axis=0)[..., None]
    steps = np.rint(rng.laplace(size=(rows, bands, samples, columns)) * scale).astype(int)
    return np.where(steps > 0, 2 * steps - 1, -2 * steps).clip(0, coded.ESCAPE).astype(np.uint8)


@PROPERTY
@given(
    seed=st.integers(0, 99),
    rows=st.integers(1, 9),
    columns=st.integers(1, 300),
    spread=st.sampled_from([0.0, 0.1, 0.5, 2.0, 40.0, 1000.0]),
    bands=st.integers(1, 4),
    samples=st.integers(1, 5),
)
def test_what_is_decoded_is_what_was_encoded(seed, rows, columns, spread, bands, samples):
    symbols = drawn(seed, rows, columns, spread, bands, samples)
    assert np.array_equal(coded.decode(coded.encode(coded.counted(symbols)), symbols.shape), symbols)


@pytest.mark.parametrize("spread", [0.15, 0.5, 2.0, 10.0])
def test_it_takes_what_its_symbols_say_and_no_more(spread):
    symbols = drawn(0, 32, 2_000, spread, 1, 10)
    found = coded.encode(coded.counted(symbols))
    counts = coded.counted(symbols).counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ideal = -(counts * np.log2(np.where(shares > 0, shares, 1))).sum()
    assert ideal <= 8 * found.words.nbytes < 1.01 * ideal and 8 * found.nbytes < 1.03 * ideal
    assert coded.counted(symbols).cost_bits == pytest.approx(8 * found.nbytes, rel=0.01)


def test_bands_and_samples_are_told_apart():
    """Symbols whose spread differs between bands and samples take less where these are said."""
    symbols = drawn(0, 8, 50, 2.0, 4, 40)
    told = coded.encode(coded.counted(symbols)).nbytes
    assert told < 0.93 * coded.encode(coded.counted(symbols.reshape(8, 4, 1, -1))).nbytes
    assert told < 0.93 * coded.encode(coded.counted(symbols.reshape(8, 1, 40, -1).copy())).nbytes


def test_few_symbols_take_no_table():
    """What both ends know is enough where a table would cost more than it saves."""
    found = coded.encode(coded.counted(drawn(0, 16, 4, 0.7, 1, 4)))
    assert found.tables.max() == 0 and found.tables.nbytes < 16


def test_the_known_tables_are_of_laplace_distributions():
    """Level by level: a mean magnitude of √2 to the power of it."""
    shares = coded.KNOWN / ans.TOTAL
    assert (shares.sum(axis=1) == 1).all()
    magnitudes = (np.arange(coded.NUM_SYMBOLS) + 1) // 2
    means = (shares * magnitudes).sum(axis=1)[5:27]
    expected = 2 ** ((np.arange(5, 27) - laplace.ZERO_LEVEL) / 2)
    assert means == pytest.approx(expected, rel=0.12)
    for begin, go_on in laplace.BEGIN_AND_GO_ON:
        t = go_on / 65536
        assert go_on == 8192 or begin / 65536 == pytest.approx(t**0.6, abs=1e-4)


@PROPERTY
@given(seed=st.integers(0, 9999), data=st.data())
def test_frequencies_add_up_and_forget_no_symbol(seed, data):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, data.draw(st.sampled_from([2, 100, 1 << 40])), (3, data.draw(st.integers(1, 256))))
    counts[:, 1:] *= rng.random((3, counts.shape[1] - 1)) < 0.5
    tables = ans.frequencies(counts).astype(int)
    assert ((tables > 0) == (counts > 0)).all()
    assert set(tables.sum(axis=1).tolist()) <= {0, ans.TOTAL}


@PROPERTY
@given(data=st.data())
def test_words_that_are_not_whole_are_refused(data):
    symbols = drawn(1, 5, 120, 1.0)
    found = coded.encode(coded.counted(symbols))
    words = found.words.copy()
    change = data.draw(st.sampled_from(["shorter", "longer", "other", "none"]))
    if change == "shorter":
        words = words[: data.draw(st.integers(0, len(words) - 1))]
    elif change == "longer":
        words = np.append(words, np.uint16(data.draw(st.integers(0, 65535))))
    elif change == "other":
        words[data.draw(st.integers(0, len(words) - 1))] ^= np.uint16(1 << data.draw(st.integers(0, 15)))
    else:
        words = np.zeros(0, np.uint16)
    with pytest.raises(PayloadError, match="not whole"):
        coded.decode(coded.Coded(words, found.levels, found.tables), symbols.shape)


def test_rows_of_zeros_are_not_coded():
    symbols = np.zeros((64, 1, 1, 5000), np.uint8)
    nothing = coded.encode(coded.counted(symbols))
    assert nothing.words.nbytes == 2 * ans.HEAD and nothing.tables.nbytes == 0
    symbols[:8] = drawn(0, 8, 5000, 1.0)
    with_zeros, without = coded.encode(coded.counted(symbols)), coded.encode(coded.counted(symbols[:8].copy()))
    assert np.array_equal(with_zeros.words, without.words)
    assert np.array_equal(coded.decode(with_zeros, symbols.shape), symbols)
