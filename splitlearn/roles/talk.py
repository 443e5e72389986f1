"""One client's batch on the server: what the conversation keeps of it from its first message to its last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitlearn.exchange.exchange import Outcome, ServerHalf
from splitlearn.exchange.passage import Passage


@dataclass
class Talk:
    """One client's batch, on the server.

    Attributes:
        half: the server's, of the exchange.
        passage: the batch's way over the channels.
        share: of the samples of the client's optimizer step (see Trainable.share).
        targets_bytes: of targets that crossed.
        targets: these, as they came; None where there are none.
        outcome: after the last round.
        is_skipped: it is left out, because it is not finite.
    """

    half: ServerHalf
    passage: Passage
    share: float = 1.0
    targets_bytes: int = 0
    targets: Any = None
    outcome: Outcome | None = None
    is_skipped: bool = False
