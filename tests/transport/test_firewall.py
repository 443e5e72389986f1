"""A firewall on the server's machine that drops what it does not let through, in network namespaces (root, Linux)."""

import re
import sys

import pytest
from runs import ROOT, TINY

sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
import namespaces

OPTIONS = [*TINY, "batch_size=8"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(namespaces.why_not()), reason=str(namespaces.why_not()))]


def let_through(net: namespaces.Network, *ports: int) -> None:
    """TCP between server and clients goes to and from these ports of the server alone; all else is lost silently."""
    for port in ports:
        net.server.run("ip", "rule", "add", "pref", "100", "ipproto", "tcp", "sport", str(port), "lookup", "main")
    net.server.run("ip", "rule", "add", "pref", "101", "to", f"{namespaces.SUBNET}.0/24", "ipproto", "tcp", "blackhole")


def run(tmp_path, ports: list[int], *options: str) -> tuple[list[int], list[str]]:
    """Exit statuses and outputs of a server and two clients."""
    outs = [tmp_path / f"{rank}.txt" for rank in range(3)]
    with namespaces.network(num_clients=2) as net:
        let_through(net, *ports)
        ranks = []
        for rank, path in enumerate(outs):
            out = open(path, "wb")  # noqa: SIM115
            folder = f"hydra.run.dir={tmp_path / 'run'}"
            ranks.append(net.start(rank, *OPTIONS, *options, folder, stdout=out, stderr=out))
        try:
            return [rank.wait(200) for rank in ranks], [path.read_text() for path in outs]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


def test_one_open_port_is_enough(tmp_path):
    statuses, outs = run(tmp_path, [29500])
    assert statuses == [0, 0, 0], outs
    assert "test accuracy" in outs[0]


def test_a_port_that_is_not_open_is_told_of_in_time_on_both_sides(tmp_path):
    statuses, (server, *clients) = run(tmp_path, [], "rpc.connect_timeout_s=3")
    assert statuses == [1, 1, 1]
    assert re.search("did not come within [345] s", server) and "let them reach 10.99.0.1:29500" in server
    assert all("no server at 10.99.0.1:29500 (no answer: a firewall may drop it)" in client for client in clients)
    assert not any("Traceback" in out for out in (server, *clients))
