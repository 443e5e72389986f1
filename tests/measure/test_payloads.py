"""What a step's line says of payloads, and the note where what they hold grows."""

import torch

from splitlearn.exchange.channel import ChannelSpec, Transfer, rms
from splitlearn.measure.payloads import Growth, of_payloads

SMASHED = ChannelSpec("smashed", "up", "smashed data", "compressor", "uplink", back="gradient")
GRADIENT = ChannelSpec("gradient", "down", "cut gradient", "downlink", "downlink")


def line(step: int, size: float, error: float = 0.25) -> dict:
    return {"step": step, "uplink_rms": size, "uplink_error": 0.0, "downlink_error": error}


def test_a_line_has_bytes_and_the_means_of_what_was_measured():
    measured = [Transfer("smashed", 10, 40, 80, error, rms=size) for error, size in ((0.5, 2.0), (0.25, 4.0))]
    rest = Transfer("smashed", 7, 40, 80)
    expected = {"uplink_bytes": 27, "uplink_error": 0.375, "uplink_rms": 3.0}
    assert of_payloads(SMASHED, [*measured, rest]) == expected
    assert of_payloads(GRADIENT, []) == {"downlink_bytes": 0}
    assert rms(torch.tensor([3.0, -4.0], dtype=torch.float16)) == 12.5**0.5


def test_smashed_data_that_grow_under_compression_are_told_of_once():
    growth, at_start = Growth((SMASHED, GRADIENT), "auto"), {}
    assert [growth.note(line(step, size), at_start) for step, size in ((1, 0.5), (2, 60.0))] == [None, None]
    assert growth.note({"step": 3}, at_start) is None
    resumed = Growth((SMASHED, GRADIENT), "auto")
    for one in (growth, resumed):
        assert "the smashed data grow: rms 0.5 at the start, 70 in step 4" in one.note(line(4, 70.0), at_start)
    assert growth.note(line(5, 700.0), at_start) is None


def test_nothing_is_said_where_nothing_was_lost_or_it_is_seen_to():
    exact, seen_to = Growth((SMASHED, GRADIENT), "auto"), Growth((SMASHED, GRADIENT), "tangent")
    for step, size in ((1, 0.5), (2, 700.0)):
        assert exact.note(line(step, size, error=0.0), {}) is None and seen_to.note(line(step, size), {}) is None
