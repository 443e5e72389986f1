"""What crosses at a client's interface, by the kernel's counters, in network namespaces (root, Linux)."""

import sys

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
import namespaces
from measure_wire import a_step

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))]


def test_with_a_local_loss_nothing_comes_down():
    up, down, payload = a_step("compressor=ms", "exchange=local_loss")
    assert 1.0 < up / payload < 1.06
    assert down < 0.005 * 4 * 256 * 64 * 16 * 16  # acknowledgements, and an answer without a payload
    _, with_gradient, _ = a_step("compressor=ms", "exchange=labels_up")
    assert with_gradient > 100 * down
