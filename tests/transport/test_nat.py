"""Three machines with a certificate each, one of them in a home network behind NAT (root, Linux, nftables)."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from runs import ROOT, TINY, run
from simulation import compose
from test_resume import assert_same

from splitlearn import local

sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
import namespaces

OPTIONS = [*TINY, "batch_size=8"]
why_not = namespaces.why_not() or (None if shutil.which("nft") else "there is no command nft (package nftables)")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not), reason=str(why_not))]


def behind(router: namespaces.Namespace) -> namespaces.Namespace:
    """A machine whose packets the router sends on as its own; nobody beyond it has a way to that machine."""
    home = namespaces.Namespace()
    path = f"/proc/{os.getpid()}/fd/{home.file}"
    router.run("ip", "link", "add", "inside", "type", "veth", "peer", "name", "eth0", "netns", path)
    for machine, device, address in ((router, "inside", "192.168.7.1/24"), (home, "eth0", "192.168.7.2/24")):
        machine.run("ip", "addr", "add", address, "dev", device)
        machine.run("ip", "link", "set", device, "up")
    home.run("ip", "route", "add", "default", "via", "192.168.7.1")
    router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    router.run("nft", "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100 ; }")
    router.run("nft", "add rule ip nat out oifname eth0 masquerade")
    return home


def test_a_server_a_client_and_one_behind_nat(tmp_path):
    status, out = run([sys.executable, str(ROOT / "scripts" / "make_certificates.py"), "--clients", "2"], tmp_path)
    assert status == 0, out
    for rank in ("server", "client0", "client1"):  # each machine has its own alone
        shutil.copytree(tmp_path / "certificates" / rank, tmp_path / rank / "certificates" / rank)
    with namespaces.network(num_clients=2) as net:
        net.clients[1] = behind(net.clients[1])
        with net.server.inside():
            ping = subprocess.run(["ip", "route", "get", "192.168.7.2"], capture_output=True, text=True)
            assert ping.returncode != 0 or "10.99.0" not in ping.stdout
        ranks, outs = [], [tmp_path / f"{rank}.txt" for rank in range(3)]
        for rank, (name, path) in enumerate(zip(("server", "client0", "client1"), outs, strict=True)):
            out = open(path, "wb")  # noqa: SIM115
            options = [f"tls.folder={tmp_path / name / 'certificates'}", f"hydra.run.dir={tmp_path / 'run'}"]
            ranks.append(net.start(rank, *OPTIONS, *options, stdout=out, stderr=out))
        seen, until = "", time.monotonic() + 120
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < until:
            seen += net.server.run("ss", "--no-header", "--numeric", "--tcp")  # whom the server is connected with
            time.sleep(0.2)
        statuses = [rank.wait(1) for rank in ranks]
    assert statuses == [0, 0, 0], [path.read_text() for path in outs]
    assert "listening at 10.99.0.1:29500, encrypted" in outs[0].read_text() and "10.99.0.3:" in seen
    assert "192.168.7" not in seen
    local.run(compose(*OPTIONS, "num_clients=2"), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")
