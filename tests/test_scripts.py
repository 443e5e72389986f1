"""The measurements, made small."""

import os
import re
import shutil
import sys

import pytest
from runs import ROOT, TINY, run

BENCHMARKS = ROOT / "scripts" / "benchmarks"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_compare_compressors(run_here):
    status, out = run_here(
        BENCHMARKS / "compare_compressors.py", "--compressors", "none", "ms+ms", "--seeds", "0", "--", *TINY
    )
    assert status == 0, out
    none, ms = (cells(line) for line in out.splitlines() if line.startswith(("| none", "| ms")))
    assert none[4:] == ["1.00 ×", "1.00 ×", "0.000"]
    assert ms[0] == "ms+ms" and 10 < float(ms[5].split()[0]) < 12  # a sign bit more down than up
    assert ms[4].startswith("13.7") and 0.1 < float(ms[6]) < 0.4


def test_compare_compressors_by_the_first_metric_of_the_task(run_here):
    options = ["task=causal_lm", "arch.width=8", "arch.heads=1", "arch.depth=2", "cut=1", "samples_per_epoch=16"]
    options += ["epochs=1", "data.max_test_samples=8", "task.context=8", "num_clients=1", "log.tensorboard=false"]
    path = BENCHMARKS / "compare_compressors.py"
    status, out = run_here(path, "--compressors", "none", "--seeds", "0", "--", *options)
    assert status == 0, out
    header, _, row = (cells(line) for line in out.splitlines() if line.startswith("|"))
    assert header[1] == "test perplexity" and 200 < float(row[1]) < 400  # of 256 bytes


def test_bench_step(run_here):
    status, out = run_here(BENCHMARKS / "bench_step.py", "--rounds", "1", "--", *TINY, "epochs=2")
    assert status == 0, out
    rows = {row[0]: row[1:] for line in out.splitlines() if line.startswith("|") for row in [cells(line)]}
    assert rows["uncut, one process"][1] == "1.00"
    phases = [float(row[0]) for name, row in rows.items() if name.startswith("split:")]
    assert len(phases) == 5
    assert sum(phases) == pytest.approx(float(rows["split, all"][0]), rel=0.02, abs=0.05)


def test_bench_data(run_here):
    status, out = run_here(BENCHMARKS / "bench_data.py", "--rounds", "1", "--", *TINY, "arch=convnet", "epochs=3")
    assert status == 0, out
    rows = {row[0]: row[1:] for line in out.splitlines() if line.startswith("|") for row in [cells(line)]}
    in_memory, one_by_one = (rows[way] for way in ("batches, in memory", "image by image"))
    ratio = float(one_by_one[1]) / float(in_memory[1])
    assert float(in_memory[2]) == pytest.approx(ratio, rel=0.1) and float(one_by_one[2]) == 1 and ratio > 2
    assert rows["uncut, one process, 1 thread"][1] == "1.00" and float(rows["harness, 2 clients and a server"][1]) > 0


def test_bench_client(run_here):
    status, out = run_here(BENCHMARKS / "bench_client.py", "--rounds", "1", "--", "batch_size=4")
    assert status == 0, out
    rows = {row[0]: row[1:] for line in out.splitlines() if line.startswith("|") for row in [cells(line)]}
    compute, encode, decode, share = (float(cell.removesuffix(" %")) for cell in rows["ms_best + ms_best"])
    assert share == pytest.approx(100 * (encode + decode) / compute, rel=0.1)


@pytest.mark.slow
def test_chaos(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "chaos.py"), "--moments", "3", "--epochs", "8"]
    status, out = run(command, tmp_path, timeout_s=300)
    assert status == 0, out
    moments = [cells(line) for line in out.splitlines() if line.startswith(("| kill", "| stop"))]
    assert sum(int(row[1]) for row in moments) >= 3 and all(row[-2:] == ["0", "0"] for row in moments)


def test_bench_reliability(run_here):
    status, out = run_here(BENCHMARKS / "bench_reliability.py", "--rounds", "1", "--every", "1", *TINY, "epochs=2")
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if line.startswith(("| without", "| one", "| checks"))]
    assert len(rows) == 3 and all(float(row[1]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_measure_wire(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "measure_wire.py"), "--compressors", "none", "ms"]
    status, out = run(command, tmp_path, timeout_s=300)
    assert status == 0, out
    (ms,) = (cells(line) for line in out.splitlines() if line.startswith("| ms"))
    assert float(ms[4]) < 1.1 and float(ms[6].split()[0]) >= 13.4


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root and iproute2")
def test_emulate_link(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "emulate_link.py"), "--rate", "20", "--clients", "1", "--", *TINY]
    status, out = run([*command, "epochs=1", "hydra.run.dir=run"], tmp_path)
    if "does not let root make them" in out:
        pytest.skip(out)
    assert status == 0, out
    rates = re.search(r"a plain TCP transfer gets ([\d.]+) up, ([\d.]+) down", out)
    assert all(float(rate) < 20 for rate in rates.groups())
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("tc"), reason="needs root and iproute2")
def test_bench_overlap(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "bench_overlap.py"), "--rate", "5"]
    status, out = run([*command, "--", "data.max_train_samples=128", "compressor=none"], tmp_path, timeout_s=290)
    if "does not let root make them" in out:
        pytest.skip(out)
    assert status == 0, out
    one, two = (list(map(float, cells(line)[1:])) for line in out.splitlines() if line.startswith("| pipeline"))
    for fast, up, down, estimate, slow, *ratios in (one, two):
        assert up == pytest.approx(down) and estimate == pytest.approx(fast + up + down, abs=0.002)
        assert slow > up + down and ratios == pytest.approx([slow / estimate, slow / max(fast, up, down)], abs=0.02)


@pytest.mark.slow
def test_compression_error(tmp_path, run_here):
    status, out = run_here(BENCHMARKS / "compression_error.py", "--epochs", "1", "--samples", "128", "--out", "error")
    assert status == 0, out
    lines = (tmp_path / "error.md").read_text().split("###")[1].splitlines()
    rows = {row[0]: row[1:] for line in lines if line.startswith("| ") for row in [cells(line)]}
    bits, error = ({name: float(row[i]) for name, row in rows.items() if name != "compressor"} for i in (0, 1))
    assert [bits["ms, floor (paper)"], bits["qu, 3 bits"]] == pytest.approx([2.32, 3], abs=0.02)
    assert error["ms, nearest"] < error["ms, floor (paper)"] < error["sp, ratio .95875"]
    assert bits["ms, nearest, zstd"] < bits["ms, nearest"] and error["ms, nearest, zstd"] == error["ms, nearest"]
    assert (tmp_path / "error.png").stat().st_size > 10_000


@pytest.mark.slow
def test_bench_codec(run_here):
    status, out = run_here(BENCHMARKS / "bench_codec.py", "--quick", "--threads", "1", "--seconds", "0.01")
    assert status == 0, out
    savings = [float(line.split()[-1]) for line in out.splitlines() if line.startswith(" ms ratio=0.99 bits=2  ")]
    assert savings == [13.79, 13.79]  # of noise, and of a trained network's map


@pytest.mark.slow
def test_error_feedback(run_here):
    status, out = run_here(BENCHMARKS / "error_feedback.py", "--epochs", "1", "--seeds", "0")
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if line.startswith(("| none", "| ms", "| sp"))]
    assert len(rows) == 10 and rows[0][2:4] == ["0.000", "1.000"]
    assert all(float(row[2]) > 0 and float(row[3]) < 1 for row in rows[1:])


@pytest.mark.slow
def test_soak(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "soak.py"), "--steps", "300", "--clients", "2", "--crash-every", "15"]
    status, out = run(command, tmp_path, timeout_s=290)
    assert status == 0 and "the server gains" in out, out


def test_scaling(run_here):
    status, out = run_here(BENCHMARKS / "scaling.py", "--clients", "1", "2", "--rounds", "1")
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if line.startswith(("| 1 ", "| 2 "))]
    assert len(rows) == 4  # of times, and of what a client costs
    for number, step, batch, server, *_ in rows[:2]:
        assert float(batch) == pytest.approx(float(step) / int(number), abs=0.06) and float(server) <= float(batch)


def test_bench_entropy(run_here):
    status, out = run_here(BENCHMARKS / "bench_entropy.py", "--rounds", "1", "--places", "3000")
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if "rANS" in line]
    assert len(rows) == 4 and all(float(row[3]) < 1.03 for row in rows)


@pytest.mark.slow
def test_bench_relay(tmp_path):
    command = [
        sys.executable,
        str(BENCHMARKS / "bench_relay.py"),
        "--rounds",
        "1",
        "--seconds",
        "0.1",
        "--clients",
        "1",
    ]
    status, out = run(command, tmp_path, timeout_s=200)
    assert status == 0 and "a step of the default run with one client" in out, out
    assert len([line for line in out.splitlines() if line.startswith("| 1 ")]) == 3


@pytest.mark.slow
def test_bench_lossless(run_here):
    options = ("--archs", "vgg_slim", "--epochs", "1", "--steps", "2")
    status, out = run_here(BENCHMARKS / "bench_lossless.py", *options)
    assert status == 0, out
    rows = [cells(line) for line in out.splitlines() if line.startswith(("| vgg_slim", "| transformer"))]
    assert len(rows) == 8 * 3
    for tensor, _, none, zstd, ans, *times in rows:
        assert 0 < float(ans) <= float(none) and float(zstd) <= float(none)
        # Tokens that come again have the same hidden states, which zstd finds: there it may be ahead.
        assert float(ans) <= float(zstd) or "transformer" in tensor
        assert len(times) == 6 and all(float(one) > 0 for one in times)
