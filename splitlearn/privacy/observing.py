"""What the server sees of some training batches, kept in the run's folder for attacks on it (see docs/privacy.md).

    observed/client-0/epoch-0001-batch-00001.pt          the server's: of each channel the tensor that it decoded, or
                                                         that it was about to encode, and the targets, if it has them
    observed/client-0/epoch-0001-batch-00001-inputs.pt   the client's, with observe.inputs: inputs and targets; in the
                                                         place of observed/ another folder, where it names one
    observed/epoch-0001-segment.pt                       the clients' weights at the start of the epoch, where all have
                                                         the same: the server has averaged them, or drawn them

Both ends count the batches that a client sends, so that they keep the same ones and need not tell each other.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from splitlearn.checkpoints import serialized, write_whole
from splitlearn.errors import writing_to
from splitlearn.exchange.exchange import Exchange

FOLDER = "observed"
INPUTS = "-inputs"


class Observer:
    """
    Args:
        cfg: of the run.
        run: the folder of the run.
        inputs: this is the client's end, which writes inputs, if any.
    """

    def __init__(self, cfg: DictConfig, run: Path | None, inputs: bool = False):
        self.options, self.run, self.folder = cfg.observe, run, run and run / FOLDER
        if inputs and cfg.observe.inputs is not True:
            self.folder = Path(cfg.observe.inputs) if cfg.observe.inputs else None

    @property
    def note(self) -> str | None:
        """What to tell users."""
        if not (number := self.options.batches):
            return None
        beside = " and the inputs of these" if self.options.inputs else ""
        return f"the server keeps what it sees of {number} batches of each client{beside} (observe.batches)"

    def keeps(self, exchange: Exchange, epoch: int, num_batches: int, num_sent: int) -> bool:
        """Whether a client's next batch to be sent is kept, after so many that it has sent of this epoch's."""
        if not self.options.batches:
            return False
        number = sum(exchange.plan(before).num_sent(num_batches) for before in range(1, epoch)) + num_sent
        return number % self.options.every == 0 and number // self.options.every < self.options.batches

    def start(self) -> None:
        """The run starts from its beginning."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, client: int, epoch: int, num_sent: int, found: dict[str, Any], kind: str = "") -> None:
        """
        Raises:
            UserError: there is no room.
        """
        found = {"client": client, "epoch": epoch, "batch": num_sent + 1, **found}
        self._write(self.folder / f"client-{client}" / f"epoch-{epoch:04}-batch-{num_sent + 1:05}{kind}.pt", found)

    def write_segment(self, epoch: int, state: dict[str, Tensor]) -> None:
        """The weights that all clients begin an epoch with, if any batch of it is kept. Raises as `write` does."""
        path = self.folder / f"epoch-{epoch:04}-segment.pt"
        if not path.exists():
            self._write(path, state)

    def _write(self, path: Path, found: dict[str, Any]) -> None:
        with writing_to(self.folder, self.run):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, serialized(found))


def observed(folder: Path) -> list[dict[str, Any]]:
    """All that is kept of the run in a folder, by client, epoch and batch.

    Each has `client`, `epoch`, `batch` (from 1, of those that the client sent), `channels` (tensors by the names of the
    exchange's channels), `targets` (None where nobody told) and, with observe.inputs, `inputs`.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("client-*/*.pt")):
        if path.stem.endswith(INPUTS):
            continue
        one = torch.load(path, weights_only=True)
        beside = path.with_stem(path.stem + INPUTS)
        found.append(one | (torch.load(beside, weights_only=True) if beside.exists() else {}))
    return found


def known_segment(folder: Path, epoch: int) -> dict[str, Tensor] | None:
    """What the server knew of the clients' weights at the start of an epoch; None where it did not."""
    path = folder / FOLDER / f"epoch-{epoch:04}-segment.pt"
    return torch.load(path, weights_only=True) if path.exists() else None
