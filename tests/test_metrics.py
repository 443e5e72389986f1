"""What the server writes down, where there is little to measure or no room for it."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from runs import TINY, metrics, summary
from simulation import compose

from splitlearn import local
from splitlearn.display import Display
from splitlearn.errors import UserError
from splitlearn.metrics import Recorder
from splitlearn.segments import CutPoint
from splitlearn.transport import guard

MEASURED = {"client": 0, "num_samples": 8, "loss": 2.0, "top1": 0.5, "uplink_bytes": 10, "downlink_bytes": 40}
MEASURED |= {"uplink_raw_bytes": 40, "uplink_formula_bits": 80, "downlink_formula_bits": 320}
OTHER = Counter(smashed_up=10, gradient_down=40, labels_up=8, weights_up=0, weights_down=0, evaluation_up=5)


@pytest.fixture
def recorder(tmp_path):
    """Of a run of one epoch that starts."""
    recorder = Recorder(compose(*TINY, "num_clients=1"), tmp_path, Display())
    recorder.open(None)
    recorder.describe(CutPoint("layer", (2, 2, 2), torch.float32), 10)
    recorder.start(num_steps=1)
    yield recorder
    recorder.close()


def test_an_epoch_and_a_run_without_a_finite_batch_are_told_of(recorder, tmp_path, capfd):
    recorder.skipped()
    recorder.step(1, 1, [], 0.1)
    recorder.end_epoch(1, Counter(), Counter())
    assert "epoch 1/1 no batch was finite up 0 B down 0 B" in capfd.readouterr().out
    assert "loss" not in metrics(tmp_path, "epoch")[0]
    recorder.evaluation(1, {"top1": 0.1, "top5": 0.5, "loss": 2.3})
    with pytest.raises(UserError, match=r"^nonfinite=skip left every batch out"):
        recorder.finish()


@pytest.mark.parametrize("refused", [{}, {"call": 2, "message": 1}])
def test_refusals_are_in_the_summary_and_shown_where_there_are_any(refused, recorder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(guard, "refusals", Counter(refused))
    recorder.step(1, 1, [MEASURED], 0.1)
    recorder.evaluation(1, {"top1": 0.1, "top5": 0.5, "loss": 2.3})
    recorder.end_epoch(1, OTHER, Counter())
    assert recorder.state()["refused"] == refused
    recorder.finish()
    assert summary(tmp_path)["refused"] == refused
    out = capfd.readouterr().out
    assert ("refused" in out) == bool(refused) and ("call 2, message 1" in out) == bool(refused)


@pytest.mark.parametrize("left", [None, 10])
def test_measurements_that_are_missing_are_not_made_up(left, recorder, tmp_path):
    recorder.step(1, 1, [MEASURED], 0.1)
    state, path = recorder.state(), tmp_path / "metrics.jsonl"
    content = path.read_bytes()[:left]
    path.unlink() if left is None else path.write_bytes(content)
    again = Recorder(recorder.cfg, tmp_path, Display())
    with pytest.raises(UserError, match=rf"metrics.jsonl has {left or 0} of the \d+ bytes .*resume=never$"):
        again.open(state)
    assert not path.exists() if left is None else path.read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_run_on_a_full_disk_ends_with_one_sentence(tmp_path, capfd):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"^{tmp_path} cannot be written to \(No space left on device\): make room"):
        local.run(compose(*TINY, "num_clients=1"), tmp_path)
    assert "Traceback" not in capfd.readouterr().err
