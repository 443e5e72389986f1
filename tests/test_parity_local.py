"""Runs whose clients train by losses of their own equal plain programs in one process, bit for bit."""

import pytest
from local_simulation import train_by_local_loss
from runs import metrics
from simulation import compose
from test_parity import SMALL, assert_equal, run

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_equals(program, folder, *overrides):
    options = ["num_clients=3", "epochs=2", "data.max_train_samples=151", "batch_size=16", "seed=5"]
    cfg = compose(*options, *overrides, *SMALL)
    losses, clients, server = run(cfg, folder)
    expected_losses, expected_clients, expected_server = program(cfg)
    assert losses == pytest.approx(expected_losses, rel=1e-12)
    for client, expected in zip(clients, expected_clients, strict=False):
        assert_equal(client, expected)
    assert_equal(server, expected_server)


@pytest.mark.parametrize(
    "overrides",
    [["compressor=none"], ["compressor=ms", "exchange.send_every=2"], ["exchange.send_every=100", "compressor=klt"]],
    ids=" ".join,
)
def test_local_loss(overrides, tmp_path):
    assert_equals(train_by_local_loss, tmp_path, "exchange=local_loss", *overrides)
    (first, *_) = metrics(tmp_path, "epoch")
    assert first["smashed_up_bytes"] > 0 and first["local_loss"] > 0
    assert not any(name.endswith("gradient_down_bytes") for name in first)
