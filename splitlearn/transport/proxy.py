"""The client's side of every call: numbered, signed, sent again where no answer comes."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch.distributed.rpc as rpc

from splitlearn.console import legible
from splitlearn.errors import PeerError, Rejoin
from splitlearn.transport.delivery import deliver, value_of
from splitlearn.transport.link import Link
from splitlearn.transport.place import SERVER
from splitlearn.transport.token import sign

LAST_WORD_S = 2.0
PROOF_S = 10.0  # how long the server may take to say that it is there
PATIENT = ("hello", "round", "weights")  # kinds of call that wait for others, who may train for as long as they like


class ServerProxy:
    """The client's side: calls to the server, over a link that is kept up."""

    def __init__(self, link: Link):
        self.link, self.client, self.patience = link, link.client, link.patience
        self._number, self._body = 0, ()

    def call(self, kind: str, *body: Any) -> Any:
        """Sends one request and waits for its answer: of a patient kind for as long as the server is there.

        Raises:
            PeerError: the server ended the run, is gone, or did not answer in time.
            Rejoin: the server does not know this client any more, and waits for its hello.
        """
        self._number += 1
        return self.call_anew(kind, *body)

    def call_anew(self, kind: str, *body: Any) -> Any:
        """The same request with another body, while another thread waits for its answer; both get it. Raises alike."""
        self._body = body
        what = self.client, self.link.session, self._number, kind
        deadline = time.monotonic() + self.patience.call_s
        wait_s = min(self.patience.retry_s, self.patience.call_s / 4)
        is_told = False
        while True:
            remaining_s, renewals = deadline - time.monotonic(), self.link.renewals
            try:
                timeout_s = max(0.1, min(wait_s, remaining_s))
                arguments = (*what, sign(self.link.key, *what), self._body)
                status, value = value_of(rpc.rpc_async(SERVER, deliver, args=arguments, timeout=timeout_s))
                if status != "unsigned":
                    break
                is_late = False  # the front desk takes this client for gone
            except RuntimeError as error:
                is_late = "timeout" in str(error).lower()
            if remaining_s <= (wait_s if is_late else 0):
                raise PeerError(
                    f"the server at {self.link.way} did not answer within {self.patience.call_s:.0f} s (rpc.timeout_s)"
                )
            if is_late and self.link.answers(min(PROOF_S, wait_s)):
                if not is_told:
                    self.link.tell(f"the server has not answered for {timeout_s:.0f} s: it waits for other clients")
                is_told = True
                wait_s = min(2 * wait_s, self.patience.call_s / 4)  # or call or answer was lost: it is sent again,
                if kind in PATIENT:  # and applied once
                    deadline = time.monotonic() + self.patience.call_s
            else:
                self.link.renew(renewals, deadline)
        if status == "rejoin":
            raise Rejoin
        if status == "failed":
            error = PeerError(legible(value) if isinstance(value, str) else "the server does not say why")
            error.is_told = True
            raise error
        return value

    def last_word(self, kind: str, *body: Any) -> None:
        """Sends one request, once, for a server that is there; what it answers is not waited for for long."""
        self._number += 1
        with suppress(RuntimeError):
            self.link.send(self._number, kind, body, LAST_WORD_S)

    def give_up(self) -> None:
        """Calls that still wait, in other threads, end with the connection instead of connecting anew."""
        self.link.give_up()
