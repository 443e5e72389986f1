import pytest
from simulation import compose

from splitlearn.exchange.channel import Transfer
from splitlearn.exchange.exchange import exchange_from
from splitlearn.measure.ledger import Ledger, of_training


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(exchange_from(compose("exchange=u_shaped")).channels)


def test_each_byte_is_booked_once(ledger):
    ledger.trained([Transfer("smashed", 10, 40, 64, 0.5, 4), Transfer("gradient", 20, 40, 160)], targets_bytes=3)
    ledger.trained([Transfer("smashed", 12, 40, 64)], targets_bytes=0)  # of a batch that was left out
    ledger.evaluated([Transfer("smashed", 7, 40, 64), Transfer("features", 5, 40, 64)], targets_bytes=2)
    ledger.book("weights_up", 100)
    assert ledger.traffic == {
        "smashed_up": 22,
        "gradient_down": 20,
        "labels_up": 3,
        "evaluation_up": 7 + 2,
        "evaluation_down": 5,
        "weights_up": 100,
    }
    assert {f"{name}_bytes": number for name, number in ledger.traffic.items()} == ledger.totals
    smashed = ledger.channels["smashed"]
    assert (smashed["payloads"], smashed["bytes"], smashed["raw_bytes"], smashed["formula_bytes"]) == (2, 22, 80, 16)
    assert (smashed["errors"], smashed["error"], smashed["basis_bytes"]) == (1, 0.5, 4)
    of_way = [of_training(ledger.totals | {"link_up_bytes": 9, "batches": 5}, way) for way in ("up", "down")]
    assert of_way == [22 + 3 + 100, 20]  # without the evaluation
    assert (ledger.of_run("up"), ledger.of_run("down"), ledger.of_epoch("up")) == (22, 20, 22)


def test_a_link_carries_the_largest_of_the_clients_bytes(ledger):
    for transfers in (
        [Transfer("smashed", 10, 0, 0), Transfer("feature_gradient", 5, 0, 0), Transfer("features", 9, 0, 0)],
        [Transfer("smashed", 12, 0, 0), Transfer("gradient", 8, 0, 0)],
    ):
        ledger.trained(transfers, targets_bytes=0)
    ledger.stepped()
    assert (ledger.totals["link_up_bytes"], ledger.totals["link_down_bytes"]) == (15, 9)


def test_it_goes_on_from_its_state(ledger):
    ledger.trained([Transfer("smashed", 10, 40, 64, 0.5)], targets_bytes=3)
    again = Ledger(tuple(ledger.specs.values()))
    again.load(ledger.state())
    again.trained([Transfer("smashed", 1, 4, 8)], targets_bytes=1)
    assert again.traffic == {"smashed_up": 11, "labels_up": 4} and again.channels["smashed"]["payloads"] == 2
