"""Who is there. One class for both kinds of fleet:

A *fixed* fleet is complete or the run ends: all of num_clients must come, and what one of them does wrong, or that it
is gone, ends the run with one sentence.

In an *open* run (membership.open) clients come and go, and it goes on with those that are there. A client joins with
its hello, between two steps, and trains on what is left of its epoch; an epoch is one pass of every client that is
there over its data. Each step waits for the next batch of those that are there, and goes on without one that is gone or
has sent nothing for membership.step_deadline_s, as long as there is a quorum; a batch that comes later is part of a
later step, and no step waits for that client until then. Others are sent to join again, and so are those that this
server, started anew, does not know.

Of each client it keeps how many batches of the epoch it has done, and the state that it handed in last: with each
checkpoint, and when it left on request. One that crashed goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from splitlearn.batches import num_batches
from splitlearn.errors import PeerError
from splitlearn.exchange.messages import Failed, Goodbye, Hello, Message, State, Step, Weights, WeightsReply
from splitlearn.exchange.rounds import Round
from splitlearn.roles.fit import check_test, compare
from splitlearn.roles.host import Host
from splitlearn.roles.member import Member
from splitlearn.roles.rounds import Rounds
from splitlearn.roles.waiting import Repeated
from splitlearn.transport.inbox import LOOK_EVERY_S, names_of

QUIET_S = 0.0, 15.0  # how long a wait for the first clients is not worth a line: on several machines, and on one


class Roster(Rounds):
    """When clients come, and what the run waits for. Arguments as Attendance's."""

    # Coming

    def meet(self, host: Host) -> None:
        """Waits for a quorum.

        Raises:
            UserError: clients of a fixed fleet did not come, or do not fit.
        """
        self.host = host
        self._waits = Repeated(self.note, QUIET_S[self.inbox.where is None])
        if self.is_open:
            while (number := len(self.here())) < self.quorum:
                self._waits(f"waiting for clients: {number} of membership.quorum={self.quorum} are there")
                with self.inbox.changed:
                    self.inbox.changed.wait_for(self.inbox.new_requests, LOOK_EVERY_S)
                self.sort_out()
            return
        requests = self.inbox.meet(self.cfg.rpc.connect_timeout_s, self._wait_for_missing)
        hellos = [
            Hello.parse(request.body, f"client {client}", self.agreement) for client, request in enumerate(requests)
        ]
        for client, hello in enumerate(hellos):
            compare(self, client, hello)
            self._enrol(client, hello)
        self.about = self.agreement.task.together([hello.about for hello in hellos])
        check_test(hellos, self.cfg)
        host.build(self.about)
        for client, hello in enumerate(hellos):
            host.check_batches(client, hello.num_train)
        for client, request in enumerate(requests):
            request.reply(host.welcome(client).body())

    def _wait_for_missing(self, missing: list[int]) -> None:
        number, timeout_s = self.cfg.num_clients, self.cfg.rpc.connect_timeout_s
        if absent := [client for client in missing if not self.inbox.is_alive(client)]:
            self._waits(f"waiting for {names_of(absent)} of {number} (rpc.connect_timeout_s={timeout_s:g})")
        else:
            self._waits(f"waiting for {names_of(missing)} of {number}, which signed in, to load data")

    def _enrol(self, client: int, hello: Hello) -> None:
        self.about = self.about or hello.about
        member = self.members.setdefault(client, Member())
        member.is_in, member.is_late, member.is_leaving = True, False, False
        for name in ("num_train", "num_test", "num_numbered", "origin"):
            setattr(member, name, getattr(hello, name))
        member.num_batches = num_batches(hello.num_train, self.cfg.batch_size, self.cfg.last_batch)
        member.num_test_batches = num_batches(hello.num_test, self.cfg.batch_size)
        member.start(self.progress.epoch, self.plan)

    def _admit(self, client: int) -> None:
        request, hello = self.take(client, Hello)
        self.untold.pop(client, None)
        is_first, before = self.about is None, self.known(client)
        try:
            compare(self, client, hello)
            self._enrol(client, hello)
            if is_first:
                self.host.build(self.about)
            self.host.check_batches(client, hello.num_train)
        except PeerError as error:  # another is the server's own mistake, and ends the run
            self.members.pop(client, None)
            self.members |= before
            if is_first:  # the next client's data may fit
                self.about = None
                self.tell(client, f"is sent away: {error}")
            return request.fail(str(error))
        if self.has_room() and client not in self.progress.drawn:
            self.progress.drawn.append(client)
        request.reply(self.host.welcome(client).body())
        is_own = hello.origin and hello.origin["partition"] == "none"
        samples = f" with {hello.num_train} samples and {hello.num_test} for test" if is_own else ""
        self.tell(client, f"joined{samples}")

    # Their parts in an epoch

    def answer(self, clients: Iterable[int], part: str) -> None:
        """Tells these clients, which ask, what they do next."""
        for client in self.due(clients, Round, "did not ask for its part"):
            with self.excusing(client):
                self._answer(client, part)

    def _answer(self, client: int, part: str) -> None:
        request, message = self.take(client, Round)
        if message.wants_to_stop:
            self.let_go(client)
        request.reply(self.host.part(client, part).body())

    # What the run waits for

    def sort_out(self) -> None:
        """Answers what does not wait for others: who comes, who ends, and who is where the run is not any more."""
        for client, request in self.look().items():
            with self.excusing(client):
                if request.kind == Hello.kind:
                    self._admit(client)
                elif request.kind == Failed.kind:
                    request, failed = self.take(client, Failed)
                    request.reply()
                    self.see_off(client, f"stopped: {failed.why}")
                elif client not in self.here():
                    request.is_taken = True
                    if why := self.untold.pop(client, None):
                        request.fail(why)
                    else:
                        request.send_back()
                elif request.kind == State.kind:
                    self.keep(client)
                elif request.kind == Round.kind and client in self.in_round():
                    self._answer(client, "train")

    def gather(self, is_ending: Callable[[], bool]) -> list[int] | None:
        """The clients whose next batch is due; none if the epoch is over; None where the run is to end meanwhile."""
        if not self.is_open:
            return self.unfinished()
        while True:
            self.sort_out()
            self.wait_for(self.on_time())
            waiting = set(self.waiting())
            kinds = {client: request.kind for client, request in self.look().items()}
            kinds = {client: kind for client, kind in kinds.items() if kind != Round.kind or client not in waiting}
            others = [client for client, kind in kinds.items() if kind not in (Step.kind, Weights.kind)]
            if others := [*others, *(waiting & kinds.keys() - set(others))]:
                for client in others:
                    if kinds[client] not in (Hello.kind, Failed.kind, State.kind, Round.kind):
                        self.see_off(client, f"sent {kinds[client]} where its step was due")
                continue
            ready = [client for client in self.in_round() if client in kinds]
            for client in ready:
                member = self.members[client]
                if kinds[client] == Step.kind and member.batch >= member.num_due:
                    self.see_off(client, "sent one step more than its epoch has")
                elif member.is_late:
                    member.is_late = False
                    self.tell(client, "is back")
            ready = [client for client in ready if client in self.here()]
            if len(ready) >= self.quorum:
                return [client for client in ready if kinds[client] == Step.kind]
            if is_ending():
                return None
            if self.sample is not None:
                self.draw(self.quorum)
            with self.inbox.changed:
                self.inbox.changed.wait(LOOK_EVERY_S)

    def due(self, clients: Iterable[int], kind: type[Message], what: str, waits: bool = True) -> list[int]:
        """Those of `clients` that have sent this kind of message; of an open run, the others are seen off."""
        clients = [client for client in clients if client in self.here()]
        if not self.is_open:
            return clients
        if waits:
            self.wait_for(clients)
        found = []
        for client, request in self.look().items():
            if client in clients and request.kind == State.kind:
                with self.excusing(client):
                    self.keep(client)
        for client in clients:
            if client in self._seen and self._seen[client].kind == kind.kind:
                found.append(client)
            else:
                self.see_off(client, what)
        return found

    # What they keep for the run

    def keep(self, client: int) -> None:
        """Takes a client's state."""
        member = self.members[client]
        request, message = self.take(client, State)
        if client in self.in_round():  # one that waits has nothing new
            member.state_epoch = self.progress.epoch
            member.state = self.host.codecs.completed(client, message.state)
        request.reply()
        if self.is_open and (message.leaves or member.is_leaving):
            self.see_off(client, "left")

    def hear_states(self, told: Iterable[int], directive: str | None = None) -> None:
        """Takes the states of those that were told to hand them in.

        Args:
            told: by an answer to something else.
            directive: what those that wait for the end of the epoch are told now; None leaves them waiting.
        """
        told = {client for client in told if client in self.here()}
        if directive == "stop" and not self.is_open:
            self.answer(self.waiting(), "stop")
        if not self.is_open:
            for client in sorted({*self.in_round()} - told) if directive else ():
                request = self.inbox.take(client, Weights.kind, Round.kind, Goodbye.kind)
                if request.kind == Round.kind:  # it has had its turn, and handed on what there is of it
                    request.reply(self.host.part(client, "stop").body())
                elif request.kind == Weights.kind:  # who says goodbye has had its last turn, and is answered at the end
                    request.reply(WeightsReply(None, directive, False).body())
                    told.add(client)
            for client in sorted(told):
                self.keep(client)
            return
        for client, request in self.look().items() if directive else ():
            if client in self.waiting() and request.kind == Round.kind and directive == "stop":
                self._answer(client, "stop")
            elif client in self.here() and request.kind == Weights.kind:
                request.is_taken = True
                request.reply(WeightsReply(None, directive, False).body())
                told.add(client)
        self.wait_for(told)
        self.sort_out()
