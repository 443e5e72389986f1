"""The books of a run: every byte that crossed, booked once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitlearn.exchange.channel import ChannelSpec, Transfer
from splitlearn.exchange.exchange import Outcome

COUNTERS = ("totals", "traffic")
APART = ("evaluation", "link")  # booked beside what crosses for training


@dataclass
class Measured:
    """A client's part in a step.

    Attributes:
        client: which one.
        outcome: what its batch came to.
        transfers: payloads that crossed for it.
        targets_bytes: of targets that crossed.
    """

    client: int
    outcome: Outcome
    transfers: list[Transfer]
    targets_bytes: int = 0


class Ledger:
    """
    Args:
        specs: the channels of the run.

    Attributes:
        totals: of the run: batches, those left out, and bytes by what they are, as <what>_bytes.
        traffic: of the epoch: bytes by what they are.
        channels: of the run, by channel: payloads, their bytes, those of the tensors and by formula, and errors.
        delta_bytes: that the server holds of samples, to send only their changes.
    """

    def __init__(self, specs: Sequence[ChannelSpec]):
        self.specs = {spec.name: spec for spec in specs}
        self.totals: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.delta_bytes = 0
        self.channels: dict[str, Counter[str]] = {name: Counter() for name in self.specs}
        self._of_step: list[list[Transfer]] = []  # by client

    def state(self) -> dict[str, Any]:
        channels = {name: dict(total) for name, total in self.channels.items()}
        return {"channels": channels, **{name: dict(getattr(self, name)) for name in COUNTERS}}

    def load(self, state: dict[str, Any]) -> None:
        for name in COUNTERS:
            getattr(self, name).update(state[name])
        for name, total in state["channels"].items():
            self.channels[name].update(total)

    def book(self, what: str, num_bytes: int) -> None:
        """Bytes that crossed, by what they are, such as weights_up."""
        self.traffic[what] += num_bytes
        self.totals[f"{what}_bytes"] += num_bytes

    def trained(self, transfers: list[Transfer], targets_bytes: int) -> None:
        """What crossed for a client's batch in a step, whether it is part of it or was left out."""
        self.book("labels_up", targets_bytes)
        self._of_step.append(transfers)
        for one in transfers:
            self.book(self.specs[one.channel].traffic, one.num_bytes)
            self.channels[one.channel].update(
                payloads=1,
                bytes=one.num_bytes,
                raw_bytes=one.raw_bytes,
                formula_bytes=one.formula_bits / 8,
                basis_bytes=one.basis_bytes,
                errors=one.error is not None,
                error=one.error or 0.0,
            )

    def evaluated(self, transfers: list[Transfer], targets_bytes: int) -> None:
        """What crossed for a batch of test samples."""
        self.book("evaluation_up", targets_bytes)
        for one in transfers:
            self.book(f"evaluation_{self.specs[one.channel].way}", one.num_bytes)

    def stepped(self) -> None:
        """A step is over: all clients whose batches were booked have sent at the same time, each over its own link."""
        for way in ("up", "down"):
            of_clients = (
                sum(one.num_bytes for one in transfers if self.specs[one.channel].way == way)
                for transfers in self._of_step
            )
            self.totals[f"link_{way}_bytes"] += max(of_clients, default=0)
        self._of_step.clear()

    def tested(self, num_clients: int) -> None:
        """The epoch's evaluation is over: so many clients have sent at the same time."""
        for way in ("up", "down"):
            self.totals[f"link_{way}_bytes"] += self.traffic[f"evaluation_{way}"] / max(num_clients, 1)

    def of_run(self, way: str) -> int:
        """Bytes of all channels that go one way, so far."""
        return sum(self.totals[f"{spec.traffic}_bytes"] for spec in self.specs.values() if spec.way == way)

    def of_epoch(self, way: str) -> int:
        return sum(self.traffic[spec.traffic] for spec in self.specs.values() if spec.way == way)


def of_training(booked: Mapping[str, Any], way: str) -> int:
    """Bytes of all that has crossed one way for training: payloads, labels, weights, and a bottleneck's start.

    Args:
        booked: what was booked as <what>_<way>_bytes: a ledger's totals, or the line of an epoch in metrics.jsonl.
        way: "up" or "down".
    """
    return sum(
        number for name, number in booked.items() if name.endswith(f"_{way}_bytes") and not name.startswith(APART)
    )
