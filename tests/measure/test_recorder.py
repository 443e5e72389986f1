"""What the server writes down, where there is little to measure or no room for it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from runs import TINY, metrics, summary
from simulation import compose

from splitlearn import local
from splitlearn.errors import UserError
from splitlearn.exchange.channel import Transfer
from splitlearn.exchange.exchange import Outcome
from splitlearn.measure.display import Display
from splitlearn.measure.ledger import Measured
from splitlearn.measure.recorder import Recorder
from splitlearn.roles.progress import Progress
from splitlearn.segments import CutPoint
from splitlearn.transport import guard

UP, DOWN = Transfer("smashed", 10, 40, 80, error=0.25), Transfer("gradient", 40, 40, 320)
MEASURED = Measured(0, Outcome(8, {"top1": 4.0}, 2.0), [UP, DOWN], targets_bytes=8)
TEST = Outcome(10, {"top1": 1.0, "top5": 5.0, "loss": 23.0})
TEN = {"num_classes": 10, "classes": list("0123456789")}
CUTS = [CutPoint("layer", (2, 2, 2), torch.float32)]
FIRST = Progress(epoch=1, epoch_step=1, step=1)


@pytest.fixture
def recorder(tmp_path):
    """Of a run of one epoch that starts."""
    recorder = Recorder(compose(*TINY, "num_clients=1"), tmp_path, Display())
    recorder.open(None)
    recorder.describe(CUTS, TEN)
    recorder.start(num_steps=1)
    yield recorder
    recorder.close()


def test_an_epoch_and_a_run_without_a_finite_batch_are_told_of(recorder, tmp_path, capfd):
    recorder.left_out([], 0, is_skipped=True)
    recorder.step(FIRST, [], 0.1)
    recorder.end_epoch(1, {})
    assert "epoch 1/1 no batch was finite up 0 B down 0 B" in capfd.readouterr().out
    assert "loss" not in metrics(tmp_path, "epoch")[0]
    recorder.evaluation(1, [(0, TEST)], 10)
    with pytest.raises(UserError, match=r"^nonfinite=skip left every batch out"):
        recorder.finish()


def test_a_run_that_goes_on_before_its_first_step_keeps_its_boards(recorder, tmp_path):
    recorder.end_epoch(1, {})  # in which the clients trained alone
    state = recorder.state()
    recorder.close()
    (tmp_path / "wandb_id").write_text("mine")
    for start, is_kept in ((state, True), (None, False)):
        again = Recorder(recorder.cfg, tmp_path, Display())
        again.open(start)
        again.close()
        assert (tmp_path / "wandb_id").exists() == is_kept


@pytest.mark.parametrize("refused", [{}, {"call": 2, "message": 1}])
def test_refusals_are_in_the_summary_and_shown_where_there_are_any(refused, recorder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(guard, "refusals", Counter(refused))
    recorder.step(FIRST, [MEASURED], 0.1)
    recorder.evaluation(1, [(0, TEST)], 10)
    recorder.end_epoch(1, {})
    assert recorder.state()["refused"] == refused
    recorder.finish()
    assert summary(tmp_path)["refused"] == refused
    out = capfd.readouterr().out
    assert ("refused" in out) == bool(refused) and ("call 2, message 1" in out) == bool(refused)


def test_bytes_are_booked_once_and_end_up_in_every_place(recorder, tmp_path):
    recorder.left_out([Transfer("smashed", 10, 40, 80)], 8, is_skipped=True)  # it crossed, though nothing came of it
    recorder.step(FIRST, [MEASURED], 0.1)
    recorder.ledger.evaluated([UP], 5)
    recorder.ledger.book("weights_up", 100)
    recorder.ledger.book("bottleneck_up", 30)
    recorder.evaluation(1, [(0, TEST)], 10)
    recorder.end_epoch(1, {"codec": 0.5})
    recorder.finish()
    (step,), (epoch,) = metrics(tmp_path, "step"), metrics(tmp_path, "epoch")
    assert (step["uplink_bytes"], step["downlink_bytes"]) == (10, 40)
    assert (step["loss"], step["top1"], step["uplink_error"]) == (2.0, 0.5, 0.25) and "downlink_error" not in step
    assert (epoch["loss"], epoch["top1"], epoch["codec_s"]) == (2.0, 0.5, 0.5)
    booked = {name: epoch[f"{name}_bytes"] for name in ("smashed_up", "gradient_down", "labels_up", "weights_up")}
    assert booked == {"smashed_up": 20, "gradient_down": 40, "labels_up": 16, "weights_up": 100}
    assert epoch["samples"] == 8
    found = summary(tmp_path)
    assert found["uplink"]["bytes"] == 20 and found["uplink"]["uncompressed_bytes"] == 80
    assert found["uplink"]["saving"] == found["uplink"]["saving_by_formula"] == 4.0
    assert (found["uplink"]["relative_error"], found["downlink"]["relative_error"]) == (0.25, None)
    assert found["other_bytes"] == {
        "labels_up": 16,
        "weights_up": 100,
        "weights_down": 0,
        "evaluation_up": 10 + 5,
        "evaluation_down": 0,
        "bottleneck_up": 30,
        "bottleneck_down": 0,
    }
    assert found["all_bytes"] == {"up": 20 + 16 + 100 + 30, "down": 40} and found["samples"] == 8
    assert (found["test_top1"], found["test_top5"], found["test_loss"]) == (0.1, 0.5, 2.3)


def test_a_codec_whose_formula_gives_no_bits_has_a_summary(recorder, tmp_path):
    recorder.step(FIRST, [Measured(0, MEASURED.outcome, [Transfer("smashed", 10, 40, 0)])], 0.1)
    recorder.evaluation(1, [(0, TEST)], 10)
    recorder.end_epoch(1, {})
    recorder.finish()
    found = summary(tmp_path)["uplink"]
    assert (found["saving"], found["saving_by_formula"]) == (4.0, 1.0)


@pytest.mark.parametrize("topology, weights", [("parallel", 1000 / 2), ("sequential", 1000)])
def test_clients_that_take_turns_send_one_after_the_other(topology, weights, tmp_path):
    cfg = compose(*TINY, f"topology={topology}", "membership.sample=2", "num_clients=4", "link.up_mbits=8")
    recorder = Recorder(cfg, tmp_path, Display())
    recorder.open(None)
    recorder.describe(CUTS, TEN)
    recorder.start(num_steps=1)
    recorder.step(FIRST, [MEASURED], 0.1)
    recorder.ledger.book("weights_up", 992)
    recorder.ledger.evaluated([UP], 30)
    recorder.evaluation(1, [(client, TEST) for client in range(4)], 10)  # all, though two have trained
    recorder.end_epoch(1, {})
    recorder.finish()
    found = summary(tmp_path)
    assert found["seconds_over_link"] - found["seconds"] == pytest.approx(1e-6 * (10 + weights + 40 / 4), abs=1e-9)


def test_what_crossed_of_batches_that_are_left_out_takes_its_time_over_a_link(recorder):
    large = Transfer("smashed", 25, 40, 80)
    recorder.left_out([large], 8, is_skipped=True)
    recorder.step(FIRST, [MEASURED], 0.1)
    assert (recorder.ledger.totals["link_up_bytes"], recorder.ledger.totals["link_down_bytes"]) == (25, 40)
    recorder.left_out([large], 8, is_skipped=False)
    recorder.step(Progress(epoch=1, epoch_step=2, step=2), [], 0.1)
    assert (recorder.ledger.totals["link_up_bytes"], recorder.ledger.totals["link_down_bytes"]) == (50, 40)


@pytest.mark.parametrize("left", [None, 10])
def test_measurements_that_are_missing_are_not_made_up(left, recorder, tmp_path):
    recorder.step(FIRST, [MEASURED], 0.1)
    state, path = recorder.state(), tmp_path / "metrics.jsonl"
    content = path.read_bytes()[:left]
    path.unlink() if left is None else path.write_bytes(content)
    again = Recorder(recorder.cfg, tmp_path, Display())
    with pytest.raises(UserError, match=rf"metrics.jsonl has {left or 0} of the \d+ bytes .*resume=never$"):
        again.open(state)
    assert not path.exists() if left is None else path.read_bytes() == content


def test_a_run_that_is_killed_after_its_last_checkpoint_still_says_what_its_defences_claim(recorder, tmp_path):
    recorder.claims = {"noise_epsilon": 2.0}
    recorder.step(FIRST, [MEASURED], 0.1)
    recorder.evaluation(1, [(0, TEST)], 10)
    recorder.end_epoch(1, {})
    state = recorder.state()
    again = Recorder(recorder.cfg, tmp_path, Display())
    again.open(state)
    again.describe(CUTS, TEN)
    again.start(num_steps=1)
    again.finish()
    found = summary(tmp_path)
    assert found["claims"] == {"noise_epsilon": 2.0} and found["test_top1"] == 0.1 and found["steps"] == 1
    older = Recorder(recorder.cfg, tmp_path, Display())
    older.open({name: value for name, value in state.items() if name != "claims"})
    assert older.claims == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_run_on_a_full_disk_ends_with_one_sentence(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be written to \(No space left on device\): make room"):
        local.run(compose(*TINY, "num_clients=1"), tmp_path)
    assert "Traceback" not in capfd.readouterr().err
