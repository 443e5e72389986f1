"""The scripts, made small."""

import os
import re
import shutil
import sys

import pytest
from runs import ROOT, TINY, run

SCRIPTS = ROOT / "scripts"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_compare_compressors(run_here):
    status, out = run_here(
        SCRIPTS / "compare_compressors.py", "--compressors", "none", "ms+ms", "--seeds", "0", "--", *TINY
    )
    assert status == 0, out
    none, ms = (cells(line) for line in out.splitlines() if line.startswith(("| none", "| ms")))
    assert none[4:] == ["1.00 ×", "1.00 ×", "0.000"]
    assert ms[0] == "ms+ms" and 10 < float(ms[5].split()[0]) < 12  # a sign bit more down than up
    assert ms[4].startswith("13.7") and 0.1 < float(ms[6]) < 0.4


def test_bench_step(run_here):
    status, out = run_here(SCRIPTS / "bench_step.py", "--rounds", "1", "--", *TINY, "epochs=2")
    assert status == 0, out
    rows = {row[0]: row[1:] for line in out.splitlines() if line.startswith("|") for row in [cells(line)]}
    assert rows["uncut, one process"][1] == "1.00"
    phases = [float(row[0]) for name, row in rows.items() if name.startswith("split:")]
    assert len(phases) == 5
    assert sum(phases) == pytest.approx(float(rows["split, all"][0]), rel=0.02, abs=0.05)


def test_bench_client(run_here):
    status, out = run_here(SCRIPTS / "bench_client.py", "--rounds", "1", "--", "batch_size=4")
    assert status == 0, out
    rows = {row[0]: row[1:] for line in out.splitlines() if line.startswith("|") for row in [cells(line)]}
    compute, encode, decode, share = (float(cell.removesuffix(" %")) for cell in rows["ms_best + ms_best"])
    assert share == pytest.approx(100 * (encode + decode) / compute, rel=0.1)


@pytest.mark.slow
def test_chaos(tmp_path):
    command = [sys.executable, str(SCRIPTS / "chaos.py"), "--moments", "2", "--runs", "1"]
    status, out = run(command, tmp_path, timeout_s=300)
    assert status == 0, out
    moments = [cells(line) for line in out.splitlines() if line.startswith(("| kill", "| stop"))]
    assert moments and all(row[-2:] == ["0", "0"] for row in moments)


def test_bench_reliability(run_here):
    status, out = run_here(SCRIPTS / "bench_reliability.py", "--rounds", "1", "--every", "1", *TINY, "epochs=2")
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if line.startswith(("| without", "| one", "| checks"))]
    assert len(rows) == 3 and all(float(row[1]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_measure_wire(tmp_path):
    command = [sys.executable, str(SCRIPTS / "measure_wire.py"), "--compressors", "none", "ms"]
    status, out = run(command, tmp_path, timeout_s=300)
    assert status == 0, out
    (ms,) = (cells(line) for line in out.splitlines() if line.startswith("| ms"))
    assert float(ms[4].split()[0]) >= 13.4


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root and iproute2")
def test_emulate_link(tmp_path):
    command = [sys.executable, str(SCRIPTS / "emulate_link.py"), "--rate", "20", "--clients", "1", "--", *TINY]
    status, out = run([*command, "epochs=1", "hydra.run.dir=run"], tmp_path)
    if "does not let root make them" in out:
        pytest.skip(out)
    assert status == 0, out
    rates = re.search(r"a plain TCP transfer gets ([\d.]+) up, ([\d.]+) down", out)
    assert all(float(rate) < 20 for rate in rates.groups())
    assert (tmp_path / "run" / "summary.json").exists()


def test_scaling(run_here):
    status, out = run_here(SCRIPTS / "scaling.py", "--clients", "1", "2", "--rounds", "1")
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if line.startswith(("| 1 ", "| 2 "))]
    assert len(rows) == 2
    for number, step, batch, server, *_ in rows:
        assert float(batch) == pytest.approx(float(step) / int(number), abs=0.06) and float(server) <= float(batch)
