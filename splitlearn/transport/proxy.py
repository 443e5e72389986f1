"""The client's side of every call: numbered, signed, sent again where no answer comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed.rpc as rpc
from torch.futures import Future

from splitlearn.errors import PeerError, Rejoin
from splitlearn.transport.delivery import deliver
from splitlearn.transport.interface import INTERFACE
from splitlearn.transport.place import SERVER, Patience
from splitlearn.transport.token import sign

MAX_RECONNECTS = 10  # in a row, with the server there each time and its RPC not


class ServerProxy:
    """The client's side: calls to the server."""

    def __init__(
        self,
        client: int,
        address: str,
        patience: Patience,
        session: str,
        key: bytes,
        reconnect: Callable[[float], tuple[str, bytes]],
    ):
        self.client, self.address, self.patience = client, address, patience
        self._session, self._key, self._reconnect = session, key, reconnect
        self._number = 0

    def call(self, kind: str, *body: Any) -> Any:
        """Sends one request and waits for its answer.

        Raises:
            PeerError: the server ended the run, is gone, or did not answer in time.
            Rejoin: the server does not know this client any more, and waits for its hello.
        """
        self._number += 1
        what = self.client, self._session, self._number, kind
        deadline = time.monotonic() + self.patience.call_s
        wait_s = min(self.patience.retry_s, self.patience.call_s / 4)
        num_reconnects = 0
        while True:
            remaining_s = deadline - time.monotonic()
            try:
                timeout_s = max(0.1, min(wait_s, remaining_s))
                arguments = (*what, sign(self._key, *what), body)
                status, value = _wait(rpc.rpc_async(SERVER, deliver, args=arguments, timeout=timeout_s))
                if status == "unsigned":  # the front desk takes this client for gone
                    raise RuntimeError(value)
                break
            except RuntimeError as error:
                if "timeout" not in str(error).lower():
                    rpc_address, self._key = self._reconnect(deadline)
                    num_reconnects += 1
                    if num_reconnects == MAX_RECONNECTS:
                        raise PeerError(
                            f"the server at {self.address} lets client {self.client} in, but its RPC at {rpc_address}"
                            f" cannot be reached: let that port through its firewall, and unset {INTERFACE}"
                        ) from error
                elif remaining_s > wait_s:
                    wait_s *= 2  # the call or its answer was lost, or the server is only slow: it applies it once
                else:
                    raise PeerError(
                        f"the server at {self.address} did not answer within {self.patience.call_s:.0f} s"
                        " (rpc.timeout_s)"
                    ) from error
        if status == "rejoin":
            raise Rejoin
        if status == "failed":
            error = PeerError(value)
            error.is_told = True
            raise error
        return value

    def give_up(self) -> None:
        """Calls that still wait, in other threads, end with the connection instead of connecting anew."""

        def refuse(_: float) -> str:
            raise PeerError("this client has left")

        self._reconnect = refuse


def _wait(future: Future) -> Any:
    """The future's value. Waiting for the future itself could not be interrupted by a signal."""
    answered = threading.Event()
    future.add_done_callback(lambda _: answered.set())
    answered.wait()
    return future.wait()
