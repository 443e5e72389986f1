"""The report of runs whose tables were computed by hand, and of a real sweep."""

import csv
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from runs import ROOT, TINY, metrics, summary
from simulation import compose
from torchvision.utils import save_image

from splitlearn.measure.display import size

REPORT, KEEP = ROOT / "scripts" / "report.py", ROOT / "scripts" / "keep_runs.py"


def write_run(folder: Path, compressor: str, seed: int, accuracies: list[float], up: int, down: int, *more) -> None:
    """A finished run of two clients with a step an epoch, whose bytes are the same each epoch."""
    folder.mkdir(parents=True)
    cfg = compose("cut=shallow", f"compressor={compressor}", f"seed={seed}", f"epochs={len(accuracies)}", *more)
    OmegaConf.save(OmegaConf.merge(cfg, {"num_clients": 2}), folder / "config.yaml", resolve=True)
    lines = []
    for epoch, accuracy in enumerate(accuracies, start=1):
        lines += [
            {"kind": "step", "epoch": epoch, "clients": [0, 1]}
            | {"features_bytes": 0, "feature_gradient_bytes": 0, "uplink_bytes": up, "downlink_bytes": down},
            {"kind": "evaluation", "epoch": epoch, "top1": accuracy},
            {"kind": "epoch", "epoch": epoch, "loss": 1 / epoch, "seconds": 6.0, "samples": 500}
            | {"smashed_up_bytes": up, "gradient_down_bytes": down, "weights_up_bytes": 0, "weights_down_bytes": 1000}
            | {"labels_up_bytes": 0, "evaluation_up_bytes": 0},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    num_epochs = len(accuracies)

    def link(nbytes: int) -> dict:
        found = {"bytes": nbytes * num_epochs, "uncompressed_bytes": 1_000_000 * num_epochs}
        return found | {
            "bytes_per_batch": nbytes / 2,
            "saving": 1_000_000 / (nbytes or 1_000_000),
            "relative_error": 0.25,
        }

    about = {"uplink": link(up), "downlink": link(down), "seconds": 6.0 * num_epochs}
    (folder / "summary.json").write_text(json.dumps(about))


def test_a_bottleneck_is_compared_with_the_unmodified_network(tmp_path, run_here):
    write_run(tmp_path / "none", "none", 0, [0.50, 0.60], 1_000_000, 1_000_000)
    write_run(tmp_path / "narrow", "none", 0, [0.40, 0.61], 100_000, 100_000, "bottleneck=8")
    random = "bottleneck_init=orthogonal"
    write_run(tmp_path / "random", "ms", 0, [0.40, 0.60], 10_000, 100_000, "bottleneck=4", random)
    write_run(tmp_path / "coded", "none", 0, [0.50, 0.60], 1_000_000, 1_000_000, "compressor@weights=uq")
    path = tmp_path / "narrow" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"labels_up_bytes"', '"bottleneck_up_bytes": 20000000, "labels_up_bytes"'))
    status, out = run_here(REPORT, str(tmp_path), "--rates", "8")
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    named = {row[0]: row[1:] for row in reversed(rows)}  # the first table's
    assert named["none, bottleneck 8"] == ["10.00"] and named["ms, bottleneck 4 orthogonal"] == ["100.00"]
    assert named["none, weights uq"] == ["1.00"]
    (narrow,) = (row for row in rows if row[1:2] == ["none, bottleneck 8"] and len(row) == 7)
    assert narrow[2:6] == ["61.00 %", "3.20", "10.00 ×", "10.00 ×"]
    minutes = [row[1] for row in rows if len(row) == 2 and row[0] == "none, bottleneck 8"][-1]
    assert minutes == "0.5"  # 12 s as run, 0.2 s of payloads, and 20 s of its start, at a megabyte a second


def test_a_perplexity_is_to_be_as_low_and_all_channels_count(tmp_path, run_here):
    for name, compressor, values, up in (("none", "none", [9.0, 7.0, 6.0], 4000), ("uq", "uq", [9.5, 8.0, 5.9], 400)):
        write_run(tmp_path / name, compressor, 0, values, up, up, "task=causal_lm", f"compressor={compressor}", "cut=2")
        path = tmp_path / name / "metrics.jsonl"
        text = re.sub(r'"(features|feature_gradient)_bytes": 0', rf'"\1_bytes": {up // 2}', path.read_text())
        path.write_text(text.replace('"top1"', '"perplexity"'))
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    named = {row[0]: row[1:] for row in reversed(rows)}  # the first table's
    assert named["perplexity to reach"] == ["6.00"] and named["uq"] == ["10.00"]
    assert named["none sends until then"] == ["18.00 kB"]  # 4,000 and 2,000 bytes up in each of three steps
    (uq,) = (row for row in rows if row[:2] == ["2", "uq"] and len(row) == 7)
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
    (tmp_path / "broken" / "metrics.jsonl").touch()
    return tmp_path


def test_tables_computed_by_hand(by_hand, run_here):
    status, out = run_here(REPORT, str(by_hand), "--rates", "8")
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    # none reaches 60 % after 3 and 2 epochs: 3 and 2 MB up; ms after 3 and 2 epochs too: 0.3 and 0.2 MB.
    assert [row for row in rows if row[0] == "accuracy to reach"] == [["accuracy to reach", "60.00 %"]] * 3
    assert [row[1] for row in rows if row[0] == "none sends until then"] == ["2.50 MB", "5.00 MB", "5.00 MB"]
    uplink, both, in_all, minutes = [row[1] for row in rows if row[0] == "ms" and len(row) == 2]
    assert uplink == "10.00 (10.00 … 10.00)"  # 3 / .3 and 2 / .2
    assert both == "1.82 (1.82 … 1.82)"  # 6 / 3.3 and 4 / 2.2
    assert in_all == "1.82 (1.82 … 1.82)"  # with a thousand bytes of weights an epoch: 2.001 / 1.101
    # 2.5 epochs of 6 s, and of 0.05 + 0.5 MB and half of 1000 bytes on one client's link: 0.5505 MB at 1 MB/s.
    assert minutes == f"{2.5 * (6 + 0.5505) / 60:.1f}"
    assert [row[1] for row in rows if row[0] == "sp" and len(row) == 2] == [*["INF, 1 of 2"] * 3, "INF"]
    assert "broken is not finished: 0 of 4 epochs" in out

    with open(by_hand / "report" / "summary.csv") as file:
        (ms,) = [row for row in csv.DictReader(file) if row["compressor"] == "ms"]
    assert float(ms["result"]) == pytest.approx(70) and float(ms["bits_per_element"]) == pytest.approx(3.2)
    assert float(ms["saving_both_ways"]) == pytest.approx(2 / 1.1)


def test_clients_that_take_turns_send_one_after_the_other(tmp_path, modules):
    runs_of, _ = modules
    seconds = {}
    for topology in ("parallel", "sequential"):
        write_run(tmp_path / topology, "none", 0, [0.5], 1_000_000, 1_000_000, f"topology={topology}")
        path = tmp_path / topology / "metrics.jsonl"
        text = path.read_text().replace('"evaluation_up_bytes": 0', '"evaluation_up_bytes": 600')
        path.write_text(text.replace('"top1"', '"clients": [0, 1, 2], "top1"'))
        (seconds[topology],) = (point.link for point in runs_of.Run(tmp_path / topology).points)
    # A step of both clients, an evaluation of three, and weights.
    assert seconds == {"parallel": 1_000_000 + 200 + 500, "sequential": 1_000_000 + 200 + 1000}


def test_exchanges_and_anchors_are_rows_and_all_bytes_count(tmp_path, run_here):
    def write(name, accuracies, up, down, *more, compressor="none"):
        write_run(tmp_path / name, compressor, 0, accuracies, up, down, "data.max_train_samples=500", *more)

    write("none", [0.30, 0.60], 1_000_000, 1_000_000)
    write("bf16", [0.30, 0.60], 500_000, 500_000, "precision=bf16")
    write("sequential", [0.30, 0.62], 1_000_000, 999_000, "topology=sequential")
    local = "exchange=local_loss", "exchange.send_every=4", "compressor.bits=0.5"
    write("local", [0.50, 0.60], 4_000, 0, *local, compressor="klt")
    write("once", [0.10, 0.55, 0.61], 99_000, 0, "exchange=send_once", "exchange.local_epochs=1")
    write("u", [0.30, 0.60], 1_000_000, 1_000_000, "exchange=u_shaped", "compressor@features=ms", "cut=shallow")
    write("fedavg", [0.20, 0.65], 0, 4_001_000, "cut=deep")
    (tmp_path / "fedavg" / "anchor.json").write_text(json.dumps({"method": "FedAvg"}))
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    methods = {row[1]: row[3:] for row in rows if len(row) == 9 and row[0] == "shallow"}
    assert methods == {
        "none": ["60.00 %", "4.00 MB", "2.00 MB", "2.00 MB", "8.00 kB", "1.0 ×"],
        "bf16": ["60.00 %", "2.00 MB", "1.00 MB", "1.00 MB", "4.00 kB", "2.0 ×"],
        "local_loss, send_every=4 · klt bits=0.5": ["60.00 %", "10.00 kB", "8.00 kB", "2.00 kB", "20 B", "400.2 ×"],
        "send_once, local_epochs=1 · none, epochs=3": [
            "61.00 %",
            "300.00 kB",
            "297.00 kB",
            "3.00 kB",
            "600 B",
            "13.3 ×",
        ],
        "sequential · none": ["62.00 %", "4.00 MB", "2.00 MB", "2.00 MB", "8.00 kB", "1.0 ×"],
        "u_shaped · none, features ms": ["60.00 %", "4.00 MB", "2.00 MB", "2.00 MB", "8.00 kB", "1.0 ×"],
        "FedAvg": ["65.00 %", "8.00 MB", "0 B", "8.00 MB", "16.01 kB", "0.5 ×"],
    }
    assert [row[1:] for row in rows if row[0] == "FedAvg"] == [["0.50"]]  # in the table of all bytes alone
    savings = [row[1] for row in rows if row[0].startswith("local_loss")]
    assert savings[:3] == ["250.00", "500.00", "400.20"] and "there is no run of" not in out
    with open(tmp_path / "report" / "accuracy.csv") as file:
        assert {row["method"]: int(float(row["all_bytes"])) for row in csv.DictReader(file)}["FedAvg"] == 8_004_000
    with open(tmp_path / "report" / "summary.csv") as file:
        found = [(row["exchange"], row["compressor"]) for row in csv.DictReader(file)]
    assert ("local_loss, send_every=4", "klt bits=0.5") in found and ("labels_up", "bf16") in found
    assert "FedAvg" not in dict(found)


def test_what_leaks_stands_beside_accuracy_and_bytes(tmp_path, run_here):
    runs = {
        "plain": ([0.50, 0.60], 1_000_000, "none", [], 0.9),
        "small": ([0.50, 0.58], 10_000, "ms", [], 0.8),
        "dropped": ([0.40, 0.55], 10_000, "ms", ["defence=drop", "defence.drop.share=0.5"], 0.5),
        "alone": ([0.40, 0.55], 10_000, "rt", [], None),
    }
    for name, (accuracies, up, compressor, more, ssim) in runs.items():
        write_run(tmp_path / name, compressor, 0, accuracies, up, 0, *more)
        if ssim is not None:
            (tmp_path / name / "attacks").mkdir()
            figures = {"ssim": {"mean": ssim, "spread": 0.0, "guess": 0.4}}
            (tmp_path / name / "attacks" / "inversion.json").write_text(json.dumps({"figures": figures}))
            save_image(torch.rand(4, 3, 8, 8), tmp_path / name / "attacks" / "inversion.png", nrow=2, padding=1)
    status, out = run_here(REPORT, str(tmp_path), "--rates", "8")
    assert status == 0, out
    table = out.split("## What leaks")[1].split("##")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    assert rows[0] == ["cut", "method", "test accuracy", "less", "inversion ssim"]
    assert rows[2:] == [
        ["", "a guess", "–", "–", "0.40"],
        ["shallow", "none", "60.00 %", "1.0 ×", "0.90"],
        ["shallow", "ms", "58.00 %", "91.0 ×", "0.80"],
        ["shallow", "drop share=0.5 · ms", "55.00 %", "91.0 ×", "0.50"],
    ]
    for name in ("leakage_by_inversion", "what_inversion_sees"):
        assert (tmp_path / "report" / f"{name}_convnet_digits.png").stat().st_size > 5000


def test_without_labels_up_what_most_runs_have_is_compared_with(tmp_path, run_here):
    options = "exchange=u_shaped", "compressor@features=none"
    write_run(tmp_path / "none", "none", 0, [0.6], 1_000_000, 1_000_000, *options)
    write_run(tmp_path / "ms", "ms", 0, [0.6], 100_000, 1_000_000, *options)
    write_run(tmp_path / "local", "ms", 0, [0.6], 100_000, 0, "exchange=local_loss")
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    assert re.search(r"\| shallow \| +ms \|.*1\.8 × \|", out) and re.search(r"\| local_loss · ms +\| +10.00 \|", out)


def test_a_compressed_run_that_differs_from_all_without_compression_is_a_row_beside_them(tmp_path, run_here):
    write_run(tmp_path / "none", "none", 0, [0.30, 0.60], 1_000_000, 1_000_000)
    as_it_is = ["evaluate.every=2", "channels_last=true", "observe.batches=3"]  # which make no other result
    write_run(tmp_path / "ms", "ms", 0, [0.20, 0.60], 100_000, 1_000_000, *as_it_is)
    write_run(tmp_path / "longer", "ms", 0, [0.20, 0.40, 0.61], 100_000, 1_000_000, "samples_per_epoch=250")
    write_run(tmp_path / "slower", "klt", 0, [0.20, 0.30], 10_000, 10_000, "optimizer.lr=0.01", "compressor.bits=4")
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    methods = {row[1]: row[-2:] for row in rows if len(row) == 9 and row[0] == "shallow"}
    assert methods == {
        "none": ["8.00 kB", "1.0 ×"],  # 500 samples
        "ms": ["4.40 kB", "1.8 ×"],
        "ms, epochs=3, samples_per_epoch=250": ["–", "1.2 ×"],  # no epoch has all samples
        "klt bits=4, optimizer.lr=0.01": ["84 B", "95.3 ×"],  # 4.002 MB, with 2 kB of weights, against .042
    }


def test_what_was_kept_before_stays_and_no_run_is_lost(tmp_path, run_here):
    for name in ("one", "two"):
        write_run(tmp_path / "outputs" / name, "none", 0, [0.5], 1000, 1000)
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}
    for name in ("one", "two", "one"):  # each by its own folder
        status, out = run_here(KEEP, f"outputs/{name}", "kept")
        assert status == 0, out
    assert {path.parent.name for path in (tmp_path / "kept").rglob("config.yaml")} == {"one", "two"}
    for folder, kept in (
        ("outputs/one",) * 2,
        ("outputs/one", "."),
        ("outputs/one", "outputs"),
        ("outputs", "outputs/a"),
    ):
        status, _ = run_here(KEEP, folder, kept)
        assert status == f"{kept} is {folder}, in it or above it: keep the runs in a folder beside it"
    assert before == {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()}


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(REPORT.parent)
    return [importlib.import_module(name) for name in ("report_runs", "report_cells")]


@pytest.fixture
def grouped(modules):
    """grouped(folder): setting, method and number of seeds of each row, and what is told of runs that are left out."""
    runs_of, cells_of = modules

    def find(folder: Path) -> tuple[list[tuple[str, str, int]], list[str]]:
        runs, _ = runs_of.load(folder)
        cells, twice = cells_of.group(runs, runs_of.varying(runs))
        return [(setting, method, len(cell.runs)) for (setting, _, method), cell in cells.items()], twice

    return find


def test_bits_are_those_of_the_runs_own_precision(tmp_path, modules):
    bits_of = importlib.import_module("report_labels").bits_of
    for name, options, bits in (("whole", [], 3.2), ("half", ["precision=bf16"], 1.6)):
        write_run(tmp_path / name, "ms", 0, [0.5], 100_000, 100_000, *options)
        assert bits_of(modules[0].Run(tmp_path / name)) == pytest.approx(bits)


@pytest.mark.parametrize(
    "option",
    ["data.augment=crop_flip", "data.max_train_samples=9", "arch.channels=8", "precision=fp16"],
)
def test_runs_without_compression_that_differ_in_an_option_are_in_tables_of_their_own(option, tmp_path, grouped):
    write_run(tmp_path / "one", "none", 0, [0.5], 1000, 1000, "arch=resnet_slim")
    write_run(tmp_path / "other", "none", 0, [0.6], 1000, 1000, "arch=resnet_slim", option)
    rows, twice = grouped(tmp_path)
    assert not twice and [row[1:] for row in rows] == [("none", 1)] * 2
    assert f"resnet_slim, digits, {option}" in [setting for setting, *_ in rows]


HEADLINES = {  # of a task: what its settings are called, and the others
    "return 'MLP', 'blood'": ("MLP, blood", "convnet, digits"),
    "return super().headline(cfg)": ("convnet, digits, metric=mean error", "convnet, digits, metric=accuracy"),
    "return 'MLP', cfg.data.root.lower()": ("convnet, digits, metric=mean error", "convnet, digits, metric=accuracy"),
}


@pytest.mark.parametrize("headline", HEADLINES)
def test_runs_of_another_task_are_compared_among_themselves_by_their_own_metric(
    headline, tmp_path, grouped, run_here, monkeypatch
):
    (tmp_path / "my_task.py").write_text(f"""
from splitlearn.tasks import Metric
from splitlearn.tasks.image_classification import ImageClassification

class Mine(ImageClassification):
    metrics = (Metric("error", "mean error", higher_is_better=False, is_share=False),)
    def headline(self, cfg): {headline}
""")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    for name, compressor, values in (("mine-none", "none", [0.9, 0.7]), ("mine-ms", "ms", [0.8, 0.6])):
        write_run(tmp_path / name, compressor, 0, values, 1000, 1000, "task._target_=my_task.Mine")
        path = tmp_path / name / "metrics.jsonl"
        path.write_text(path.read_text().replace('"top1"', '"error"'))
    for name, compressor in (("none", "none"), ("ms", "ms")):
        write_run(tmp_path / name, compressor, 0, [0.3, 0.6], 1000, 1000)
    mine, others = HEADLINES[headline]
    rows, twice = grouped(tmp_path)
    assert not twice and sorted(rows) == sorted((of, name, 1) for of in (mine, others) for name in ("none", "ms"))
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    assert f"## Mean error against all bytes: {mine}\n" in out and f"## Accuracy against all bytes: {others}\n" in out
    for title in ("mean error", "accuracy"):
        assert out.count(f"The {title} to reach is the final test {title} of no compression") == 1
    assert re.search(r"\| mean error to reach +\| +0\.70 \|", out)
    assert re.search(r"\| accuracy to reach +\| +60\.00 % \|", out)


def test_a_network_of_ones_own_is_called_by_its_class(tmp_path, grouped):
    for name in ("my.Net", "my.Other", "your.Net"):
        write_run(tmp_path / name, "none", 0, [0.5], 1000, 1000, "arch=resnet_slim", f"arch._target_={name}")
    write_run(tmp_path / "none", "none", 0, [0.6], 1000, 1000, "arch=resnet_slim")
    found = {setting.partition(", arch._target_=")[::2] for setting, *_ in grouped(tmp_path)[0]}
    assert found == {
        ("Net, digits", "my.Net"),
        ("Net, digits", "your.Net"),
        ("Other, digits", "my.Other"),
        ("resnet_slim, digits", "None"),
    }


def test_what_an_option_changes_is_in_the_name_of_the_row(tmp_path, grouped):
    runs = {
        "none": [],
        "u_shaped · none": ["exchange=u_shaped", "cut_back=last"],
        "u_shaped, cut_back=block3 · none": ["exchange=u_shaped", "cut_back=block3"],
        "none, bottleneck 8": ["bottleneck=8"],
        "none, bottleneck 8 batches=2": ["bottleneck=8", "bottleneck_batches=2"],
        "local_loss · none": ["exchange=local_loss"],
        "local_loss · bf16": ["exchange=local_loss", "precision=bf16"],
    }
    for name, options in runs.items():
        write_run(tmp_path / name, "none", 0, [0.5], 1000, 1000, *options)
    for step in ("schedule.step_size=1", "schedule.step_size=2"):  # which those without compression do not have
        write_run(tmp_path / step, "ms", 0, [0.5], 1000, 1000, "schedule=step", step)
    rows, twice = grouped(tmp_path)
    methods = {method for _, method, _ in rows}
    assert not twice and len(rows) == len(runs) + 2 and methods > runs.keys()
    assert sum("schedule.step_size=" in method for method in methods) == 2


def test_two_runs_of_a_row_with_one_seed_are_told_of_and_the_first_is_taken(tmp_path, run_here):
    write_run(tmp_path / "a", "none", 0, [0.5], 1000, 1000)
    write_run(tmp_path / "b", "none", 0, [0.9], 1000, 1000, "evaluate.every=9", "server.device=cuda")
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0 and " 50.00 % " in out and " 90.00 % " not in out, out
    assert f"- {tmp_path}/b is left out: its options, its row (none) and seed=0 are those of {tmp_path}/a\n" in out


def test_codecs_that_features_have_from_others_are_in_the_label(tmp_path, grouped):
    of_one = ["compressor@downlink=linked", "compressor.bits=0.8", "downlink.bits=0.8", "exchange=u_shaped"]
    for name, options in (("both", [*of_one, "features_alike=true"]), ("one", of_one)):
        write_run(tmp_path / name, "klt", 0, [0.5], 1000, 1000, *options)
    label = "klt bits=0.8 up, linked bits=0.8 down"
    assert [method for _, method, _ in grouped(tmp_path)[0]] == [label, f"{label}, at both cuts"]


def test_what_is_no_run_or_cannot_be_read_ends_no_report(tmp_path, run_here):
    write_run(tmp_path / "good", "none", 0, [0.5], 1000, 1000)
    foreign = tmp_path / "good" / "wandb" / "files"
    foreign.mkdir(parents=True)
    (foreign / "config.yaml").write_text("wandb_version: 1\nepochs:\n  value: 3\n")
    text = (tmp_path / "good" / "config.yaml").read_text()
    texts = {
        "empty": "",
        "list": "- 1\n",
        "torn": text[: len(text) // 2] + "\n  - {",
        "foreign": "epochs: 1\n",
        "old": "".join(line for line in text.splitlines(keepends=True) if not line.startswith("seed")),
        "away": text.replace("splitlearn.exchange.labels_up.LabelsUp", "not_here.Mine"),
        "task": text.replace("splitlearn.tasks.image_classification.ImageClassification", "not_here.Mine"),
        "topology": text.replace("splitlearn.topologies.parallel.Parallel", "not_here.Mine"),
    }
    for name, own in texts.items():
        shutil.copytree(tmp_path / "good", tmp_path / name, ignore=shutil.ignore_patterns("wandb"))
        (tmp_path / name / "config.yaml").write_text(own)
    shutil.copytree(tmp_path / "good", tmp_path / "lines", ignore=shutil.ignore_patterns("wandb"))
    (tmp_path / "lines" / "metrics.jsonl").write_text("3\n")
    write_run(tmp_path / "diverged", "none", 1, [float("nan")], 1000, 1000)
    status, out = run_here(REPORT, str(tmp_path))
    assert status == 0, out
    told = out.split("## Not in the tables\n\n")[1].split("\n\n")[0].splitlines()
    assert [line.split(" cannot be read: ")[0] for line in told] == sorted(
        f"- {name}" for name in [*texts, "lines", "diverged"]
    )
    assert "not_here.Mine" in told[0] and out.count("not_here.Mine") == 3


def test_seeds_that_were_evaluated_after_other_epochs_have_one_line_to_their_ends(tmp_path, run_here, modules):
    runs_of, cells_of = modules
    for seed, epochs in ((0, {2, 4, 6}), (1, {6}), (2, {2, 4})):  # the last ends early
        accuracies = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6][: max(epochs)]
        write_run(tmp_path / f"{seed}", "none", seed, accuracies, 1000, 1000, "epochs=6")
        path = tmp_path / f"{seed}" / "metrics.jsonl"
        lines = map(json.loads, path.read_text().splitlines())
        kept = [line for line in lines if line["kind"] != "evaluation" or line["epoch"] in epochs]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    runs = [runs_of.Run(tmp_path / f"{seed}") for seed in range(3)]
    courses = {(0,): [[2], [4], [6]], (0, 1): [[6, 6]], (0, 2): [[2, 2], [4, 4], [6, 4]], (1, 2): [[6, 4]]}
    for seeds, course in courses.items():
        found = cells_of.Cell([runs[seed] for seed in seeds]).course()
        assert [[point.epoch for point in points] for points in found] == course
    shutil.rmtree(tmp_path / "2")
    status, out = run_here(REPORT, str(tmp_path), "--rates", "8")
    assert status == 0 and "accuracy_against_all_bytes_convnet_digits.png" in out, out


def test_half_a_point_less_can_be_enough(by_hand, run_here):
    status, out = run_here(REPORT, str(by_hand), "--tolerance", "1")
    assert status == 0, out
    assert "59.00 %" in out and re.search(r"\| sp +\| +8\.33 \(6\.67 … 10\.00\)", out)  # 3 / .3 and 2 / .3


def test_the_page_needs_nothing_beside_itself(by_hand, run_here):
    run_here(REPORT, str(by_hand), "--out", "report")
    page = Path("report/report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(Path("report").glob("*.png"))) == 4
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script", page)
    assert page.count('<td class="never">INF') == 3 and "INF, 1 of 2" in page
    tex = Path("report/table1.tex").read_text()
    assert tex.count(r"\begin{table}") == 3 and r"60.00 \% \\" in tex


def test_names_of_pictures_are_short_and_their_own(monkeypatch):
    monkeypatch.syspath_prepend(REPORT.parent)
    file_names = importlib.import_module("report").file_names
    main, long = "Accuracy against all bytes, resnet_slim, image_folder", ", ".join(["optimizer.lr=0.1"] * 40)
    alike = ["Curves, convnet, lr=1e-3", "Curves, convnet, lr=1e+3", f"{long}, 1", f"{long}, 2"]
    names = file_names([main, *alike])
    assert names[main] == "accuracy_against_all_bytes_resnet_slim_image_folder.png"
    assert len(set(names.values())) == 5 and max(map(len, names.values())) < 170
    assert names[alike[2]] == file_names(alike[2:3])[alike[2]]  # whatever others there are


@pytest.mark.parametrize("number", [1, 3, 40])
def test_a_legend_is_in_its_picture_and_leaves_panels_their_size(number, modules):
    pictures = importlib.import_module("report_pictures")
    figure = pictures.Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    figure.draw_without_rendering()
    before = axes.get_window_extent().size
    look = pictures.Look("#332288", "-", "o", "every batch")
    names = [f"klt bits=0.{one} up, linked bits=0.8 down, weights uq bits=3" for one in range(number)]
    legend = pictures.legend(figure, [pictures.line(name, look, "o") for name in names])
    figure.draw_without_rendering()
    of_legend, of_axes = legend.get_window_extent(), axes.get_window_extent()
    assert figure.bbox.containsx(of_legend.x0) and figure.bbox.containsx(of_legend.x1)
    assert figure.bbox.containsy(of_legend.y0) and figure.bbox.containsy(of_legend.y1)
    assert of_axes.x1 < of_legend.x0 and (of_axes.size > 0.9 * before).all()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf"])
def test_a_rate_is_above_0(rate, tmp_path, run_here):
    status, out = run_here(REPORT, str(tmp_path), f"--rates={rate}")
    assert status == 2 and f"--rates {rate} must be a number above 0" in out


def test_a_folder_without_runs_is_one_sentence(tmp_path, run_here):
    status, _ = run_here(REPORT, str(tmp_path))
    assert "there is no finished run in" in str(status)


def all_that_crossed(found: dict) -> int:
    """From what summary.json says one by one."""
    other = sum(number for name, number in found["other_bytes"].items() if not name.startswith("evaluation"))
    return found["uplink"]["bytes"] + found["downlink"]["bytes"] + other


def test_a_sweep_goes_on_past_a_broken_job_and_its_report_has_the_runs_numbers(tmp_path, run_here):
    sweep = [ROOT / "launch.py", "sweep=grid", "compressor=none,ms", "compressor@downlink=ms", "downlink.bits=9,2"]
    sweep += [*TINY, "epochs=2", "hydra.sweep.dir=sweep"]
    status, out = run_here(*sweep)
    assert status == 1 and "2 jobs of the sweep failed" in out and "downlink.bits=9 is out of range" in out
    folders = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    rows = [line for line in out.splitlines() if re.match(r" [0-3] ", line)]
    assert len(folders) == 2 and len(rows) == 4
    for folder in folders:
        assert sum(size(sum(summary(folder)["all_bytes"].values())) in row for row in rows) == 1
    status, out = run_here(REPORT, "sweep")
    assert status == 0, out
    with open(tmp_path / "sweep" / "report" / "summary.csv") as file:
        rows = {row["compressor"]: row for row in csv.DictReader(file)}
    with open(tmp_path / "sweep" / "report" / "accuracy.csv") as file:
        in_all = {row["method"]: row["all_bytes"] for row in csv.DictReader(file)}
    for folder in folders:
        found = summary(folder)
        name = "none up, ms down" if "compressor-none" in folder.name else "ms both ways"
        assert float(rows[name]["result"]) == pytest.approx(100 * metrics(folder, "evaluation")[-1]["top1"])
        assert float(rows[name]["saving"]) == pytest.approx(found["uplink"]["saving"])
        assert float(in_all[name]) == sum(found["all_bytes"].values()) == all_that_crossed(found)
    assert_what_is_kept_has_the_same_report(tmp_path, run_here)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    status, out = run_here(*sweep)
    assert out.count("finished before, with a test accuracy of") == 2
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}


def assert_what_is_kept_has_the_same_report(tmp_path: Path, run_here) -> None:
    for path in (tmp_path / "sweep").rglob("metrics.jsonl"):  # a run without an end, as when it is killed
        shutil.copytree(path.parent, tmp_path / "sweep" / "killed")
        (tmp_path / "sweep" / "killed" / "summary.json").unlink()
        break
    status, out = run_here(KEEP, "sweep", "kept")
    assert status == 0 and "kept in kept: 2 runs" in out and "sweep/killed is not finished, and not kept" in out
    kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"config.yaml", "metrics.jsonl", "summary.json"}
    assert not any("root:" in path.read_text() for path in kept)
    status, out = run_here(REPORT, "kept")
    assert status == 0, out
    shutil.rmtree(tmp_path / "sweep" / "killed")
    reports = [tmp_path / name / "report" for name in ("sweep", "kept")]
    for path in reports[1].iterdir():
        if path.suffix not in (".html", ".md"):  # in which one report has the jobs that failed
            assert path.read_bytes() == (reports[0] / path.name).read_bytes(), path.name
    lines, of_kept = ((folder / "report.md").read_text().splitlines() for folder in reports)
    assert lines[: len(of_kept)] == of_kept
    status, out = run_here(KEEP, "nothing", "kept")
    assert status == "there is no finished run in nothing"
