"""A client's way into an epoch: it asks what its part is, where the run has something to say to that."""

from __future__ import annotations

import signal
from concurrent.futures import wait
from typing import Any

from splitlearn.errors import Stopped
from splitlearn.exchange.rounds import Round, RoundReply, asks
from splitlearn.roles.evaluation import evaluate
from splitlearn.roles.progress import ClientProgress
from splitlearn.roles.waiting import LISTEN_EVERY_S, in_background


def enters(client: Any) -> bool:
    """Waits until this client trains in an epoch, and gets ready for it; False where the run is over.

    Raises:
        Stopped: the run ends before it is over.
        Overdue: this client was asked to end, and the run can go on without it.
    """
    if not asks(client.cfg):
        return client.progress.epoch <= client.cfg.epochs
    while (reply := _ask(client)).part != "over":
        if reply.part == "stop":
            raise Stopped("stopped with the run", client.stop.asked_by or signal.SIGTERM)
        if reply.part == "wait":
            continue
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


def _ask(client: Any) -> RoundReply:
    while True:
        is_told = client.wants_to_stop()
        answer = in_background(client.ask, Round(is_told), RoundReply)
        if client.may_leave():
            return client.result(answer)
        while client.wants_to_stop() == is_told:
            if answer in wait([answer], LISTEN_EVERY_S).done:
                return answer.result()
        # It was asked to end meanwhile, and asks again, so that the server knows.
