"""A link that goes silent for a while, in network namespaces (root, Linux)."""

import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, TINY, wait_for
from simulation import compose
from test_resume import assert_same

from splitlearn import local

sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
import namespaces

OPTIONS = [*TINY, "num_clients=2", "epochs=40", "rpc.retry_s=1"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))]


@pytest.fixture
def ranks(tmp_path):
    """A server and two clients on a network, in their third epoch."""
    with namespaces.network(num_clients=2) as net:
        out = open(tmp_path / "out.txt", "wb")  # noqa: SIM115
        options = [*OPTIONS, f"hydra.run.dir={tmp_path / 'run'}"]
        ranks = [net.start(rank, *options, stdout=out, stderr=out) for rank in range(3)]
        wait_for(tmp_path / "out.txt", "epoch  3/40")
        yield net, ranks
        for rank in ranks:
            rank.kill()
            rank.wait()


def cut_off(net: namespaces.Network, client: int, seconds: float) -> None:
    """All that is sent to or from a client is lost meanwhile, and nobody is told."""
    net.server.run("ip", "link", "set", f"client{client}", "down")
    time.sleep(seconds)
    net.server.run("ip", "link", "set", f"client{client}", "up")


@pytest.mark.parametrize("seconds", [0.5, 1, 6, 20])
def test_a_silent_link_costs_time_and_nothing_else(seconds, ranks, tmp_path: Path):
    net, ranks = ranks
    cut_off(net, client=1, seconds=seconds)
    assert not (tmp_path / "run" / "summary.json").exists(), "it ended before its link did"
    out = (tmp_path / "out.txt").read_text()
    assert "listening at 10.99.0.1:29500, encrypted" in out
    assert [rank.wait(120) for rank in ranks] == [0, 0, 0], out
    local.run(compose(*OPTIONS), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
