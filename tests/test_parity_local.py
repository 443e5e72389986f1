"""Runs whose clients train by losses of their own equal plain programs in one process, bit for bit."""

import pytest
from local_simulation import train_by_moves_of_the_loss, train_by_own_loss, train_with_maps_sent_once
from runs import metrics, slow
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
    [
        slow(["exchange=local_loss", "compressor=none", "topology.average=never"]),
        ["exchange=local_loss", "compressor=ms", "exchange.send_every=2", "compressor@weights=uq", "epochs=3"],
        slow(["exchange=local_loss", "compressor=klt", "exchange.send_every=100"]),
        slow(["exchange=aligned", "compressor=rt", "exchange.align_every=2", "compressor@downlink=qu"]),
        ["exchange=aligned", "exchange.send_every=2", "compressor=klt", "compressor@downlink=linked"],
        ["exchange=local_loss", "delta=bf16", "compressor=uq", "exchange.send_every=2"],
        slow(["exchange=aligned", "delta=fp32", "compressor=klt", "compressor@downlink=linked", "epochs=3"]),
    ],
    ids=" ".join,
)
def test_clients_with_losses_of_their_own(overrides, tmp_path):
    assert_equals(train_by_own_loss, tmp_path, *overrides)
    lines = metrics(tmp_path, "epoch")
    assert all(line["smashed_up_bytes"] > 0 and line["local_loss"] > 0 for line in lines)
    assert [line["samples"] for line in lines] == [151] * len(lines)  # those too that were not sent


@pytest.mark.parametrize(
    "overrides, expected",
    [
        slow(["compressor=rt"], [False, False, True, False, False]),
        slow(["compressor=klt", "compressor.refresh=2"], [False, False, True, False, False]),
        (["compressor=klt", "compressor.refresh=2", "exchange.resend_every=2"], [False, False, True, False, True]),
    ],
    ids=["rt", "klt", "klt sent again"],
)
def test_maps_that_are_sent_once(overrides, expected, tmp_path):
    options = ["exchange=send_once", "exchange.local_epochs=2", "epochs=5", "compressor@weights=qu", *overrides]
    assert_equals(train_with_maps_sent_once, tmp_path, *options)
    assert [line.get("smashed_up_bytes", 0) > 0 for line in metrics(tmp_path, "epoch")] == expected
    assert [line["samples"] for line in metrics(tmp_path, "epoch")] == [151] * 5


def test_updates_by_the_loss(tmp_path):
    options = [
        "exchange=update_by_loss",
        "exchange.threshold=0.15",
        "epochs=7",
        "compressor=klt",
        "compressor.refresh=3",
    ]
    assert_equals(train_by_moves_of_the_loss, tmp_path, *options, "compressor@downlink=linked", "compressor@weights=uq")
    lines = metrics(tmp_path, "epoch")
    crossed = [(line.get("smashed_up_bytes", 0) > 0, line.get("gradient_down_bytes", 0) > 0) for line in lines]
    assert crossed[:2] == [(True, True)] * 2 and {*crossed[2:]} == {(True, True), (True, False), (False, False)}
