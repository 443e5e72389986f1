"""Strangers who reach a run's ports get nothing, and the run goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from runs import LAUNCH, ROOT, TINY, metrics, started, wait_for


def listening(pid: int) -> set[int]:
    """TCP ports that a process listens on."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(fd))
        except OSError:
            continue  # closed meanwhile
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(line[1].split(":")[1], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


def test_every_attack_is_refused_and_the_run_goes_on(tmp_path, free_port):
    options = ["num_clients=1", f"rpc.port={free_port}", *TINY, "epochs=100000", "hydra.run.dir=run"]
    folders = server_cwd, client_cwd, attacker_cwd = [tmp_path / name for name in ("server", "client", "attacker")]
    for folder in folders:
        folder.mkdir()
    with (
        started([*LAUNCH, "role=server", *options], server_cwd) as server,
        started([*LAUNCH, "role=client", *options], client_cwd) as client,
    ):
        wait_for(server_cwd / "out.txt", "epoch      1/")
        (port,) = listening(server.pid) - {free_port}
        attack = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "attacker.py"), f"uv://127.0.0.1:{port}", str(attacker_cwd)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        after = len(metrics(server_cwd / "run", "step"))
        wait_for(server_cwd / "run" / "metrics.jsonl", f'"step": {after + 20},')
        server.terminate()
        assert server.wait(30) == client.wait(30) == 128 + signal.SIGTERM
    outcomes = dict(line.split(" | ") for line in attack.stdout.splitlines())
    assert len(outcomes) == 11, attack.stdout + attack.stderr
    told = "not signed with this run's token"
    assert all(told in outcome or "Error" in outcome for outcome in outcomes.values()), outcomes
    assert {path.name for path in attacker_cwd.iterdir()} == {"secret"}  # none could leave a file
    assert not any("secret!!" in outcome or "115" in outcome for outcome in outcomes.values())  # nor read one
    out = (server_cwd / "out.txt").read_text()
    for refused in ("posix.system", "subprocess.Popen", "builtins.eval", "aten::from_file", "it is not signed"):
        assert refused in out
