"""Who is there, and what they have sent: the part of the roster that says so, and lets a client go.

See roster.py for when clients come, and what the run waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from splitlearn.console import legible
from splitlearn.errors import PeerError
from splitlearn.exchange.agreement import Agreement
from splitlearn.exchange.messages import Hello, Message, Weights
from splitlearn.exchange.rounds import Round
from splitlearn.roles.member import Member
from splitlearn.roles.progress import Progress
from splitlearn.tasks.origin import Origin
from splitlearn.transport.inbox import LOOK_EVERY_S, Inbox, Request


class Attendance:
    """Who of a run's clients is there.

    Args:
        cfg: of the run.
        agreement: checks what they send.
        progress: where the run is.
        tell: shows the user a line.
        lose: called where a client of a fixed fleet was asked to end.
    """

    def __init__(
        self,
        cfg: DictConfig,
        agreement: Agreement,
        progress: Progress,
        tell: Callable[[str], None],
        lose: Callable[[], None],
    ):
        self.cfg, self.agreement, self.progress, self.note, self._lose = cfg, agreement, progress, tell, lose
        self.is_open: bool = cfg.membership.open
        self.quorum = cfg.membership.quorum if self.is_open else cfg.num_clients
        self.deadline_s = cfg.membership.step_deadline_s
        self.inbox = Inbox(cfg.num_clients, cfg.rpc.timeout_s, self.is_open)
        self.members: dict[int, Member] = {}
        self.about: dict[str, Any] | None = None  # of the data that the network was built for
        self.has_noted_same = False  # that clients have the same data
        self.untold: dict[int, str] = {}  # why clients were sent away, that learn it with what they send next
        self._seen: dict[int, Request] = {}  # see `look`

    # Who is there

    def here(self) -> list[int]:
        """Clients that have joined."""
        return sorted(client for client, member in self.members.items() if member.is_in)

    def tell(self, client: int, what: str) -> None:
        num_here = sum(not self.members[other].is_late for other in self.here())
        self.note(f"client {client} {legible(what)} ({num_here} of {self.cfg.num_clients} are there)")

    def known(self, client: int) -> dict[int, Member]:
        """What is known of one that has been there and is not, of which batches may be held; of another nothing."""
        return {client: replace(self.members[client], is_in=False)} if client in self.members else {}

    # Their data

    def origins(self) -> dict[int, Origin]:
        """The data sets of all that are there, and of others where all share one data set."""
        found = {client: Origin(**member.origin) for client, member in self.members.items() if member.origin}
        return {client: origin for client, origin in found.items() if client in self.here() or not origin.is_own}

    def num_test_in_all(self) -> int | None:
        """Test samples of all clients of the run, those included that are not there; None where they are not known."""
        if shared := [origin for origin in self.origins().values() if not origin.is_own]:
            return shared[0].num_test - sum(origin.unreadable_test for origin in shared)
        is_complete = len(self.members) == self.cfg.num_clients
        return sum(member.num_test for member in self.members.values()) if is_complete else None

    # Going

    def see_off(self, client: int, why: str) -> None:
        """The run goes on without a client until it joins again."""
        if client in self.here():
            self.members[client].is_in = False
            self.tell(client, why)

    @contextmanager
    def excusing(self, client: int) -> Iterator[None]:
        """In an open run, a client that does within what was not agreed is sent away; in a fixed fleet that ends it."""
        try:
            yield
        except PeerError as error:
            if not self.is_open:
                raise
            is_told = self._seen[client].fail(str(error))
            newer = self.inbox.new_requests().get(client)
            if newer and (is_told or newer.kind == Hello.kind):
                return  # a new process of this client came this very moment
            if not is_told:  # its step was answered before it was computed
                self.untold[client] = str(error)
            if client in self.members:
                self.members[client].is_in = False
            self.tell(client, f"is sent away: {error}")

    def let_go(self, client: int) -> None:
        """A client was asked to end: it leaves an open run after this step, and ends that of a fixed fleet."""
        if self.is_open:
            self.members[client].is_leaving = True
        else:
            self._lose()

    def is_leaving(self, client: int) -> bool:
        """Whether it is there, and was asked to end."""
        return client in self.here() and self.members[client].is_leaving

    def wants_to_stop(self, request: Request) -> bool:
        """Whether the client that waits with it was asked to end, which it tells last; `take` checks the rest."""
        tells = request.kind in (Round.kind, Weights.kind) and isinstance(request.body, tuple)
        return tells and any(one is True for one in request.body[-1:])

    # What they send

    def take(self, client: int, kind: type[Message], *context: Any) -> tuple[Request, Any]:
        """The client's next request and the message in it, which must be of this kind.

        Raises:
            PeerError: it is another, or not what was agreed; of a fixed fleet also that it does not come.
        """
        if self.is_open:  # what was seen, whatever a process that came since has sent
            request = self._seen[client]
            request.is_taken = True
            if request.kind != kind.kind:
                raise PeerError(f"client {client} sent {request.kind} where {kind.kind} was due")
        else:
            request = self.inbox.take(client, kind.kind)
        return request, kind.parse(request.body, f"client {client}", self.agreement, *context)

    def look(self) -> dict[int, Request]:
        """What was not taken yet, by client; `take` takes one of these."""
        self._seen = self.inbox.new_requests()
        return self._seen

    def wait_for(self, clients: Iterable[int]) -> None:
        """Until all of these have sent something or are gone, at most until the deadline. The others are late then."""
        clients = list(clients)
        deadline = time.monotonic() + self.deadline_s
        with self.inbox.changed:
            while True:
                come = self.inbox.new_requests()
                missing = [client for client in clients if client not in come]
                silent = [client for client in missing if self.inbox.is_alive(client)]
                remaining_s = deadline - time.monotonic()
                if not silent or remaining_s <= 0:
                    break
                self.inbox.changed.wait(min(remaining_s, LOOK_EVERY_S))
        for client in missing:
            self.members[client].is_late = True
            self.tell(client, f"sent nothing for {self.deadline_s:g} s" if client in silent else "is gone")
