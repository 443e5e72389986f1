"""A client's way into an epoch: it asks what its part is, where the run has something to say to that."""

from __future__ import annotations

import signal
from typing import Any

from splitlearn.errors import Stopped
from splitlearn.exchange.rounds import Round, RoundReply, asks
from splitlearn.roles.evaluation import evaluate
from splitlearn.roles.progress import ClientProgress
from splitlearn.roles.waiting import ask_and_tell


def enters(client: Any) -> bool:
    """Waits until this client trains in an epoch, and gets ready for it; False where the run is over.

    Raises:
        Stopped: the run ends before it is over.
        Overdue: this client was asked to end, and the run can go on without it.
    """
    if not asks(client.cfg):
        return client.progress.epoch <= client.cfg.epochs
    while (reply := ask_and_tell(client, Round, RoundReply)).part != "over":
        if reply.part == "stop":
            raise Stopped("stopped with the run", client.stop.asked_by or signal.SIGTERM)
        if reply.epoch > client.progress.epoch:
            client.progress = ClientProgress(reply.epoch, 0, 0)
        client.progress.phase = reply.phase
        client.num_steps = reply.num_steps
        if reply.state is not None:
            client.load(reply.state)
        if reply.part == "train":
            return True
        evaluate(client)
    return False
