import time

import pytest

from splitlearn.measure import stopwatch
from splitlearn.measure.stopwatch import Speed, Stopwatch


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): lets time go on."""
    now = [100.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_each_moment_is_booked_under_the_innermost_phase(clock):
    watch = Stopwatch()
    clock(5)
    with watch("compute"):
        clock(1)
        with watch("codec"):
            clock(2)
            with watch("compute"):
                clock(4)
        clock(8)
    clock(16)
    with watch("codec"):
        clock(32)
    assert watch.seconds == {"compute": 13, "codec": 34}


def test_an_error_ends_its_phase(clock):
    watch = Stopwatch()
    with pytest.raises(KeyError), watch("compute"), watch("codec"):
        clock(1)
        raise KeyError
    clock(2)
    with watch("compute"):
        clock(4)
    assert watch.seconds == {"codec": 1, "compute": 4}


def test_what_is_taken_is_not_taken_again(clock):
    watch = Stopwatch()
    with watch("compute"):
        clock(1)
        assert watch.take() == {"compute": 1}
        clock(2)
    assert watch.take() == {"compute": 2} and watch.take() == {}


def test_real_time_goes_by():
    watch = Stopwatch()
    with watch("sleep"):
        time.sleep(0.02)
    assert 0.02 <= watch.seconds["sleep"] < 2


def test_a_speed_is_over_the_last_ones(clock):
    speed = Speed(over=3)
    assert speed.now() == 0
    for seconds, number in ((1, 1000), (1, 50), (1, 10), (4, 20)):
        clock(seconds)
        speed.add(number)
    assert speed.now() == pytest.approx((10 + 20) / 5)
