"""A run whose clients, or whose server, train alone goes on from anywhere as if it had not been interrupted."""

import os
import signal

import pytest
from runs import LAUNCH, left_over, metrics, slow, started, wait_for
from simulation import compose
from test_resume import OFTEN, SMALL, as_after, assert_same

from splitlearn import local

ONCE = ["exchange=send_once", "exchange.local_epochs=2", "epochs=5", "compressor=klt", "compressor.refresh=3"]
BY_LOSS = ["exchange=update_by_loss", "exchange.threshold=0.2", "epochs=6", "compressor=rt"]


@pytest.mark.parametrize(
    "overrides",
    [
        ONCE,
        slow([*ONCE, "exchange.resend_every=2"]),
        slow([*BY_LOSS, "compressor@downlink=qu", "downlink.rounding=stochastic"]),
        slow(["exchange=local_loss", "exchange.send_every=2", "compressor=rt", "topology=sequential"]),
        slow(
            [
                *("exchange=aligned", "exchange.send_every=2", "exchange.align_every=2"),
                *("compressor=klt", "compressor.refresh=2"),
            ]
        ),
        slow(["exchange=hijacking", "evaluate.on=server", "optimizer=adam", "compressor=rt"]),
        slow(["delta=bf16", "exchange=local_loss", "exchange.send_every=2", "compressor=uq", "epochs=3"]),
    ],
    ids=lambda overrides: overrides[0],
)
def test_going_on_from_any_step_changes_nothing(overrides, tmp_path):
    cfg = compose(*SMALL, *OFTEN, *overrides)
    whole = tmp_path / "whole"
    local.run(cfg, whole)
    steps = [line["step"] for line in metrics(whole, "step")]
    first = steps[len(steps) // (cfg.epochs if cfg.exchange.get("local_epochs") is None else 3)]
    found = sorted(int(path.stem.split("-")[1]) for path in (whole / "checkpoints").iterdir())
    for last in sorted({found[0], found[1], first, found[-2]}):
        part = as_after(last, whole, tmp_path / f"from{last}")
        local.run(cfg, part)
        assert_same(part, whole)


@pytest.mark.slow
def test_one_that_is_asked_to_end_while_its_clients_train_alone(tmp_path):
    options = [
        *SMALL,
        *ONCE,
        "log.tensorboard=false",
        "data.max_train_samples=400",
        "exchange.local_epochs=4",
        "epochs=6",
    ]
    local.run(compose(*options), tmp_path / "whole")
    with started([*LAUNCH, *options, "hydra.run.dir=part"], tmp_path) as process:
        wait_for(tmp_path / "out.txt", "epoch 1/6")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        assert not left_over(process.pid)
    assert "with a checkpoint: go on with" in (tmp_path / "out.txt").read_text()
    local.run(compose(*options), tmp_path / "part")
    assert_same(tmp_path / "part", tmp_path / "whole")
