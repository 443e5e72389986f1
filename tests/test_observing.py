"""What the server sees of a run is kept, and keeping it changes nothing."""

import errno

import pytest
import torch
from runs import metrics, slow
from simulation import compose
from test_resume import SMALL, results

from splitlearn import local
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.exchange.exchange import exchange_from
from splitlearn.privacy import observing
from splitlearn.privacy.observing import Observer, known_segment, observed

KEEPING = ["observe.batches=3", "observe.every=2", "observe.inputs=true"]


@pytest.mark.parametrize(
    "overrides",
    [
        slow(["compressor=rt", "compressor@downlink=qu"]),
        ["exchange=u_shaped", "compressor=klt", "compressor@features=ms", "topology.average=never"],
        slow(["exchange=local_loss", "exchange.send_every=2"]),
    ],
    ids=lambda overrides: overrides[0],
)
def test_recording_changes_no_number(overrides, tmp_path):
    for name, keeping in (("plain", []), ("kept", KEEPING)):
        local.run(compose(*SMALL, *overrides, *keeping), tmp_path / name)
    plain, kept = (results(tmp_path / name, set()) for name in ("plain", "kept"))
    assert kept[0] == plain[0]
    for one, other in zip(kept[1], plain[1], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_kept(tmp_path):
    cfg = compose(*SMALL, *KEEPING, "compressor=none")
    local.run(cfg, tmp_path)
    found = observed(tmp_path)
    assert [(one["client"], one["epoch"], one["batch"]) for one in found] == [
        (client, epoch, batch) for client in (0, 1) for epoch, batch in ((1, 1), (1, 3), (1, 5))
    ]
    for one in found:
        assert one["inputs"].shape[1:] == (3, 32, 32)
        assert len(one["targets"]) == len(one["inputs"]) == (3 if one["batch"] == 5 else 8)
        assert {name: tensor.shape[1:] for name, tensor in one["channels"].items()} == {
            "smashed": (64, 8, 8),
            "gradient": (64, 8, 8),
        }
    # The first batch of the run, through the weights that the server knew, is what it saw.
    built = network.build(cfg, {"num_classes": 10})
    built.client.load_state_dict(known_segment(tmp_path, 1))
    with torch.no_grad():
        torch.testing.assert_close(built.client(found[0]["inputs"]), found[0]["channels"]["smashed"])
    assert known_segment(tmp_path, 2) is None
    local.run(compose(*SMALL, "resume=never"), tmp_path)
    assert not observed(tmp_path) and metrics(tmp_path, "step")


def test_a_full_disk_names_the_run_to_go_on_with(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(observing, "write_whole", full)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "overrides.yaml").write_text("[]\n")  # it has begun
    for options, inputs, folder in (([], False, "run/observed"), ([f"observe.inputs={tmp_path}/seen"], True, "seen")):
        observer = Observer(compose(*KEEPING, *options), tmp_path / "run", inputs)
        with pytest.raises(UserError) as error:
            observer.write(0, 1, 0, {})
        told = f"{tmp_path / folder} cannot be written to (No space left on device): make room there, then go on with"
        assert str(error.value) == f"{told} resume={tmp_path / 'run'}"


@pytest.mark.parametrize(
    ("exchange", "overrides"),
    [
        ("send_once", ["exchange.local_epochs=3", "exchange.resend_every=2"]),
        ("local_loss", ["exchange.send_every=2"]),
        ("labels_up", []),
    ],
)
def test_so_many_are_kept_of_those_that_are_sent(exchange, overrides):
    cfg = compose(f"exchange={exchange}", *overrides, "observe.batches=4", "observe.every=3")
    observer, exchange = Observer(cfg, None), exchange_from(cfg)
    epochs = {epoch: exchange.plan(epoch).num_sent(5) for epoch in range(1, 20)}
    kept = [observer.keeps(exchange, epoch, 5, sent) for epoch, number in epochs.items() for sent in range(number)]
    assert [number for number, is_kept in enumerate(kept) if is_kept] == [0, 3, 6, 9]
