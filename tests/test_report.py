"""The report of runs whose tables were computed by hand, and of a real sweep."""

import csv
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import LAUNCH, ROOT, TINY, metrics, run, summary
from simulation import compose

REPORT = ROOT / "scripts" / "report.py"


def write_run(folder: Path, compressor: str, seed: int, accuracies: list[float], up: int, down: int, *more) -> None:
    """A finished run of two clients with a step an epoch, whose bytes are the same each epoch."""
    folder.mkdir(parents=True)
    cfg = compose("cut=shallow", f"compressor={compressor}", f"seed={seed}", f"epochs={len(accuracies)}", *more)
    OmegaConf.save(OmegaConf.merge(cfg, {"num_clients": 2}), folder / "config.yaml", resolve=True)
    lines = []
    for epoch, accuracy in enumerate(accuracies, start=1):
        lines += [
            {"kind": "step", "epoch": epoch, "clients": [0, 1], "uplink_bytes": up, "downlink_bytes": down},
            {"kind": "evaluation", "epoch": epoch, "top1": accuracy},
            {"kind": "epoch", "epoch": epoch, "loss": 1 / epoch, "seconds": 6.0}
            | {"labels_up_bytes": 0, "evaluation_up_bytes": 0, "weights_up_bytes": 0, "weights_down_bytes": 1000},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    num_epochs = len(accuracies)

    def link(nbytes: int) -> dict:
        found = {"bytes": nbytes * num_epochs, "uncompressed_bytes": 1_000_000 * num_epochs}
        return found | {"bytes_per_batch": nbytes / 2, "saving": 1_000_000 / nbytes, "relative_error": 0.25}

    about = {"uplink": link(up), "downlink": link(down), "seconds": 6.0 * num_epochs}
    (folder / "summary.json").write_text(json.dumps(about))


def test_a_bottleneck_is_compared_with_the_unmodified_network(tmp_path, run_here):
    write_run(tmp_path / "none", "none", 0, [0.50, 0.60], 1_000_000, 1_000_000)
    write_run(tmp_path / "narrow", "none", 0, [0.40, 0.61], 100_000, 100_000, "bottleneck=8")
    random = "bottleneck_init=orthogonal"
    write_run(tmp_path / "random", "ms", 0, [0.40, 0.60], 10_000, 100_000, "bottleneck=4", random)
    path = tmp_path / "narrow" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"labels_up_bytes"', '"bottleneck_up_bytes": 20000000, "labels_up_bytes"'))
    status, out = run_here(REPORT, str(tmp_path), "--rates", "8")
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    named = {row[0]: row[1:] for row in reversed(rows)}  # the first table's
    assert named["none, bottleneck 8"] == ["10.00"] and named["ms, bottleneck 4 orthogonal"] == ["100.00"]
    (narrow,) = (row for row in rows if row[1:2] == ["none, bottleneck 8"])
    assert narrow[2:6] == ["61.00 %", "3.20", "10.00 ×", "10.00 ×"]
    minutes = [row[1] for row in rows if len(row) == 2 and row[0] == "none, bottleneck 8"][-1]
    assert minutes == "0.5"  # 12 s as run, 0.2 s of payloads, and 20 s of its start, at a megabyte a second


def test_a_perplexity_is_to_be_as_low_and_all_channels_count(tmp_path, run_here):
    for name, compressor, values, up in (("none", "none", [9.0, 7.0, 6.0], 4000), ("uq", "uq", [9.5, 8.0, 5.9], 400)):
        write_run(tmp_path / name, compressor, 0, values, up, up, "task=causal_lm", f"compressor={compressor}", "cut=2")
        path = tmp_path / name / "metrics.jsonl"
        more = f'"features_bytes": {up // 2}, "feature_gradient_bytes": {up // 2}, "uplink_bytes"'
        path.write_text(path.read_text().replace('"top1"', '"perplexity"').replace('"uplink_bytes"', more))
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    named = {row[0]: row[1:] for row in reversed(rows)}  # the first table's
    assert named["perplexity to reach"] == ["6.00"] and named["uq"] == ["10.00"]
    assert named["none sends until then"] == ["18.00 kB"]  # 4,000 and 2,000 bytes up in each of three steps
    (uq,) = (row for row in rows if row[:2] == ["2", "uq"])
    assert uq[2] == "5.90"


@pytest.fixture
def by_hand(tmp_path):
    write_run(tmp_path / "none-0", "none", 0, [0.30, 0.50, 0.60, 0.60], 1_000_000, 1_000_000)
    write_run(tmp_path / "none-1", "none", 1, [0.30, 0.60, 0.60, 0.60], 1_000_000, 1_000_000)
    write_run(tmp_path / "ms-0", "ms", 0, [0.20, 0.40, 0.61, 0.70], 100_000, 1_000_000)
    write_run(tmp_path / "ms-1", "ms", 1, [0.20, 0.60, 0.61, 0.70], 100_000, 1_000_000)
    write_run(tmp_path / "sp-0", "sp", 0, [0.20, 0.40, 0.59, 0.59], 100_000, 1_000_000)
    write_run(tmp_path / "sp-1", "sp", 1, [0.20, 0.40, 0.60, 0.60], 100_000, 1_000_000)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text((tmp_path / "sp-0" / "config.yaml").read_text())
    return tmp_path


def test_tables_computed_by_hand(by_hand, run_here):
    status, out = run_here(REPORT, str(by_hand), "--rates", "8")
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    # none reaches 60 % after 3 and 2 epochs: 3 and 2 MB up; ms after 3 and 2 epochs too: 0.3 and 0.2 MB.
    assert [row for row in rows if row[0] == "accuracy to reach"] == [["accuracy to reach", "60.00 %"]] * 2
    assert [row[1] for row in rows if row[0] == "none sends until then"] == ["2.50 MB", "5.00 MB"]
    uplink, both, minutes = [row[1] for row in rows if row[0] == "ms" and len(row) == 2]
    assert uplink == "10.00 (10.00 … 10.00)"  # 3 / .3 and 2 / .2
    assert both == "1.82 (1.82 … 1.82)"  # 6 / 3.3 and 4 / 2.2
    # 2.5 epochs of 6 s, and of 0.05 + 0.5 MB and half of 1000 bytes on one client's link: 0.5505 MB at 1 MB/s.
    assert minutes == f"{2.5 * (6 + 0.5505) / 60:.1f}"
    assert [row[1] for row in rows if row[0] == "sp" and len(row) == 2] == ["INF, 1 of 2", "INF, 1 of 2", "INF"]
    assert "broken is not finished: 0 of 4 epochs" in out

    with open(by_hand / "report" / "summary.csv") as file:
        (ms,) = [row for row in csv.DictReader(file) if row["compressor"] == "ms"]
    assert float(ms["result"]) == pytest.approx(70) and float(ms["bits_per_element"]) == pytest.approx(3.2)
    assert float(ms["saving_both_ways"]) == pytest.approx(2 / 1.1)


def test_half_a_point_less_can_be_enough(by_hand, run_here):
    status, out = run_here(REPORT, str(by_hand), "--tolerance", "1")
    assert status == 0, out
    assert "59.00 %" in out and re.search(r"\| sp +\| +8\.33 \(6\.67 … 10\.00\)", out)  # 3 / .3 and 2 / .3


def test_the_page_needs_nothing_beside_itself(by_hand, run_here):
    run_here(REPORT, str(by_hand), "--out", "report")
    page = Path("report/report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(Path("report").glob("*.png"))) == 3
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script", page)
    assert page.count('<td class="never">INF') == 3 and "INF, 1 of 2" in page
    tex = Path("report/table1.tex").read_text()
    assert tex.count(r"\begin{table}") == 2 and r"60.00 \% \\" in tex


def test_a_folder_without_runs_is_one_sentence(tmp_path, run_here):
    status, _ = run_here(REPORT, str(tmp_path))
    assert "there is no finished run in" in str(status)


def test_a_sweep_goes_on_past_a_broken_job_and_its_report_has_the_runs_numbers(tmp_path, run_here):
    sweep = [*LAUNCH, "sweep=grid", "compressor=none,ms", "compressor@downlink=ms", "downlink.bits=9,2", *TINY]
    status, out = run([*sweep, "epochs=2", "hydra.sweep.dir=sweep"], tmp_path, timeout_s=200)
    assert status == 1 and "2 jobs of the sweep failed" in out and "downlink.bits=9 is out of range" in out
    folders = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    assert len(folders) == 2
    status, out = run_here(REPORT, "sweep")
    assert status == 0, out
    with open(tmp_path / "sweep" / "report" / "summary.csv") as file:
        rows = {row["compressor"]: row for row in csv.DictReader(file)}
    for folder in folders:
        found = summary(folder)
        name = "none up, ms down" if "compressor-none" in folder.name else "ms both ways"
        assert float(rows[name]["result"]) == pytest.approx(100 * metrics(folder, "evaluation")[-1]["top1"])
        assert float(rows[name]["saving"]) == pytest.approx(found["uplink"]["saving"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    status, out = run([*sweep, "epochs=2", "hydra.sweep.dir=sweep"], tmp_path)
    assert out.count("finished before, with a test accuracy of") == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
