"""A server whose clients come and go (membership.open): it goes on with those that are there.

A client joins with its hello, between two steps, and trains on what is left of its epoch; an epoch is one pass of every
client that is there over its data. Each step waits for the next batch of those that are there. It goes on without one
that is gone or has sent nothing for membership.step_deadline_s, as long as there is a quorum; a batch that comes later
is part of a later step, and no step waits for that client until then. An epoch ends with the mean of the segments of
those that have done all their batches. Others are sent to join again, and so are those that this server, started anew,
does not know.

The server keeps of each client how many batches of the epoch it has done, and weights and optimizer state as it handed
them in last: with each checkpoint, and when it left on request. One that crashed goes on from there.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from rich.markup import escape

from splitlearn.config import differences, shared
from splitlearn.errors import NonFiniteError, PeerError, UserError
from splitlearn.server import Server
from splitlearn.training import are_finite, average_states
from splitlearn.transport.inbox import LOOK_EVERY_S, Inbox, Request


@dataclass
class Member:
    """What the server knows of a client.

    Attributes:
        num_batches, num_test_batches: of its data.
        epoch: that the next two are of.
        batch: batches done.
        num_samples: in these.
        state: as handed in last; None before.
        state_epoch: when that was.
        is_in: it has joined, and was not sent away since.
        is_late: no step waits for it.
        is_leaving: it was asked to end.
    """

    num_batches: int = 0
    num_test_batches: int = 0
    epoch: int = 0
    batch: int = 0
    num_samples: int = 0
    state: dict[str, Any] | None = None
    state_epoch: int = 0
    is_in: bool = False
    is_late: bool = False
    is_leaving: bool = False

    def start(self, epoch: int) -> None:
        if self.epoch != epoch:
            self.epoch, self.batch, self.num_samples = epoch, 0, 0


class OpenServer(Server):
    """One run's server, for the clients that are there. Arguments as Server's."""

    def __init__(self, cfg: DictConfig, *args: Any):
        super().__init__(cfg, *args)
        self.inbox = Inbox(cfg.num_clients, cfg.rpc.timeout_s, is_open=True)
        self.members: dict[int, Member] = {}
        self.seen: dict[int, Request] = {}  # see `look`
        self.undoes_nonfinite = True  # one client's part is not the run's end
        self.quorum, self.deadline_s = cfg.membership.quorum, cfg.membership.step_deadline_s

    # Coming and going

    def meet_clients(self, checkpoint: dict[str, Any] | None) -> None:
        """Waits for a quorum; builds the network for the data of the first one."""
        if checkpoint:
            self.build(checkpoint["num_classes"])
            self.restore(checkpoint)
            self.client_states = [checkpoint["clients"]["average"]]
            self.members = {client: Member(**about) for client, about in checkpoint["clients"]["members"].items()}
            self.recorder.resumed(self.epoch)
        while len(self.here()) < self.quorum:
            with self.inbox.changed:
                self.inbox.changed.wait_for(self.inbox.new_requests, LOOK_EVERY_S)
            self.sort_out()
        self.num_steps = max(self.members[client].num_batches for client in self.here())

    def build(self, num_classes: int) -> None:
        super().build(num_classes)
        self.recorder.describe(self.cut, num_classes)

    def here(self) -> list[int]:
        """Clients that have joined."""
        return sorted(client for client, member in self.members.items() if member.is_in)

    def look(self) -> dict[int, Request]:
        """What was not taken yet, by client. `take` takes one of these, whatever a process that came since has sent."""
        self.seen = self.inbox.new_requests()
        return self.seen

    def take(self, client: int, kind: str, holds: str | None = None) -> Request:
        request = self.seen[client]
        request.is_taken = True
        self.agreement.check(client, kind, request.body, holds)
        return request

    def sort_out(self) -> None:
        """Answers what does not wait for others: who comes, who ends, and who is where the run is not any more."""
        for client, request in self.look().items():
            if request.kind == "hello":
                self.or_see_off(client, self.admit)
            elif request.kind == "failed":
                self.or_see_off(client, self.hear_failure)
            elif client not in self.here():
                request.is_taken = True
                request.send_back()
            elif request.kind == "state":
                self.or_see_off(client, self.keep)

    def admit(self, client: int) -> None:
        """Welcomes a client whose configuration and data fit, to where it was, with the newest weights."""
        hello = self.take(client, "hello")
        about = hello.body[0]
        if difference := differences(shared(self.cfg), about["config"], "server", "client"):
            return hello.fail(f"the server and client {client} are configured differently: {difference}")
        if self.num_classes is None:
            self.build(about["num_classes"])
        if about["num_classes"] != self.num_classes:
            return hello.fail(f"client {client}'s data have {about['num_classes']} classes, not {self.num_classes}")
        member = self.members.setdefault(client, Member())
        member.is_in, member.is_late, member.is_leaving = True, False, False
        member.num_batches = self.num_batches_of(about["num_train"])
        member.num_test_batches = self.num_batches_of(about["num_test"])
        member.start(self.epoch)
        state = member.state or self.client_states[0]
        if member.state and member.state_epoch != self.epoch:
            state = {**member.state, "segment": self.client_states[0]}
        hello.reply(
            {
                "num_classes": self.num_classes,
                "num_steps": member.num_batches,
                "epoch": self.epoch,
                "step": member.batch,
                "batch": member.batch,
                "state": state,
            }
        )
        self.tell(client, "joined")

    def hear_failure(self, client: int) -> None:
        request = self.take(client, "failed")
        request.reply()
        self.see_off(client, f"stopped: {request.body[0]}")

    def see_off(self, client: int, why: str) -> None:
        """The run goes on without a client until it joins again."""
        if client in self.here():
            self.members[client].is_in = False
            self.tell(client, why)

    def tell(self, client: int, what: str) -> None:
        self.recorder.display.note(
            f"client {client} {escape(what)} ({len(self.on_time())} of {self.cfg.num_clients} are there)"
        )

    def or_see_off(self, client: int, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, called with the client and `args`; None where the client sent what was not agreed.

        It is sent away for that.
        """
        try:
            return function(client, *args)
        except PeerError as error:
            self.seen[client].fail(str(error))
            if client not in self.inbox.new_requests():  # else a new process of this client came this very moment
                if client in self.members:
                    self.members[client].is_in = False
                self.tell(client, f"is sent away: {error}")

    def wait_for(self, clients: Iterable[int]) -> None:
        """Until all of these have sent something or are gone, at most until the deadline. The others are late then."""
        clients = list(clients)
        deadline = time.monotonic() + self.deadline_s
        with self.inbox.changed:
            while True:
                missing = [client for client in clients if client not in self.inbox.new_requests()]
                silent = [client for client in missing if self.inbox.is_alive(client)]
                remaining_s = deadline - time.monotonic()
                if not silent or remaining_s <= 0:
                    break
                self.inbox.changed.wait(min(remaining_s, LOOK_EVERY_S))
        for client in missing:
            self.members[client].is_late = True
            self.tell(client, f"sent nothing for {self.deadline_s:g} s" if client in silent else "is gone")

    def on_time(self) -> list[int]:
        """Clients that steps wait for."""
        return [client for client in self.here() if not self.members[client].is_late]

    def let_go(self, client: int) -> None:
        self.members[client].is_leaving = True  # after its next step

    # Checkpoints

    def hear_states(self, told: Iterable[int], directive: str) -> dict[str, Any]:
        """What a checkpoint says of the clients, after `told`, and those that wait for the epoch's end, were heard."""
        told = set(told)
        for client, request in self.look().items():
            if client in self.here() and request.kind == "weights":
                request.is_taken = True
                request.reply((None, directive, False))
                told.add(client)
        self.collect(told)
        return self.client_checkpoint()

    def collect(self, told: Iterable[int]) -> None:
        """Takes the states of those that were told to hand them in."""
        self.wait_for(told)
        self.sort_out()

    def keep(self, client: int) -> None:
        member, request = self.members[client], self.take(client, "state")
        member.state, leaves = request.body
        member.state_epoch = self.epoch
        request.reply()
        if leaves or member.is_leaving:
            self.see_off(client, "left")

    def client_checkpoint(self) -> dict[str, Any]:
        gone = {"is_in": False, "is_late": False, "is_leaving": False}
        members = {client: {**vars(member), **gone} for client, member in self.members.items()}
        return {"average": self.client_states[0], "members": members}

    # Training

    def train_epoch(self) -> None:
        self.trainable.segment.train()
        for member in self.members.values():
            member.start(self.epoch)
        while participants := self.gather():
            self.step(participants)
        self.average_weights()

    def gather(self) -> list[int]:
        """The clients whose next batch is here; none if the epoch is over."""
        while True:
            self.sort_out()
            self.wait_for(self.on_time())
            kinds = {client: request.kind for client, request in self.look().items()}
            if others := [client for client, kind in kinds.items() if kind not in ("step", "weights")]:
                for client in others:
                    if kinds[client] not in ("hello", "failed", "state"):
                        self.see_off(client, f"sent {kinds[client]} where its step was due")
                continue
            ready = [client for client in self.here() if client in kinds]
            for client in ready:
                if self.members[client].is_late:
                    self.members[client].is_late = False
                    self.tell(client, "is back")
            if len(ready) >= self.quorum:
                return [client for client in ready if kinds[client] == "step"]
            if self.stop.asked_by is not None:
                self.save(self.hear_states([], "stop"))
                self.end_early()
            with self.inbox.changed:
                self.inbox.changed.wait(LOOK_EVERY_S)

    def step(self, participants: list[int]) -> None:
        leaving = [client for client in participants if self.members[client].is_leaving]
        super().step(participants)
        self.collect([client for client in leaving if client in self.here()])

    def learn_from(self, client: int, directive: str | None) -> dict[str, float] | None:
        member = self.members[client]
        if member.is_leaving and directive != "stop":
            directive = "leave"

        def learn(client: int) -> dict[str, float] | None:
            measured = super(OpenServer, self).learn_from(client, directive)
            member.batch += 1
            member.num_samples += measured["num_samples"] if measured else 0
            return measured

        return self.or_see_off(client, learn)

    def diverged(self, client: int, error: NonFiniteError) -> UserError:
        if are_finite(self.trainable.segment.parameters()):
            return PeerError(f"the gradient for what client {client} sent is not finite ({error})")
        return super().diverged(client, error)  # and not by this client

    def average_weights(self) -> None:
        """The mean of the segments of all that have done their batches, to each of them."""
        sent = self.look()
        done = {
            client: request
            for client in self.here()
            if client in sent
            and sent[client].kind == "weights"
            and (request := self.or_see_off(client, self.take_weights, "segment"))
        }
        num_samples = [self.members[client].num_samples for client in done]
        by_samples = self.cfg.topology.weighting == "samples" and any(num_samples)
        states = [request.body[0] for request in done.values()]
        if states:
            self.client_states = [average_states(states, num_samples if by_samples else None)]
        for client in set(self.here()) - set(done):
            self.see_off(client, f"is too late for epoch {self.epoch}")
        directive = "save" if self.saves_epoch(self.epoch) else None
        for request in done.values():
            self.send_weights(request, self.client_states[0], directive, True)
        if directive:
            self.collect(done)
            self.epoch_states = self.client_checkpoint()

    def take_weights(self, client: int, holds: str | None = None) -> Request:
        request = super().take_weights(client, holds)
        if not are_finite(request.body[0].values()):
            raise PeerError(f"client {client} sent weights that are not finite: its training diverged")
        return request

    # Evaluation

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss, top-1 and top-5 accuracy over the test samples of the clients that are there."""
        self.trainable.segment.eval()
        totals: Counter[str] = Counter()
        remaining = {client: self.members[client].num_test_batches for client in self.here()}
        remaining = {client: number for client, number in remaining.items() if number}
        while remaining:
            self.wait_for(remaining)
            requests = self.look()
            for client in list(remaining):
                if client not in requests or requests[client].kind != "evaluate":
                    del remaining[client]
                    self.see_off(client, f"is too late for the evaluation after epoch {self.epoch}")
                    continue
                self.or_see_off(client, self.score, totals)
                remaining[client] -= 1
                if remaining[client] == 0 or client not in self.here():
                    del remaining[client]
        if totals["samples"]:
            return self.conclude(totals)
        if self.epoch == self.cfg.epochs:
            raise PeerError(f"no client is left for the last evaluation: go on with resume={self.recorder.folder}")

    def score(self, client: int, totals: Counter[str]) -> None:
        own: Counter[str] = Counter()
        super().score(client, own)
        if math.isfinite(own["loss"]):  # else one client's would be everyone's
            totals.update(own)

    def say_goodbye(self) -> None:
        self.finish()
        self.wait_for(self.here())
        for request in self.look().values():
            if request.kind == "goodbye":
                request.reply(self.recorder.final_top1)
        self.inbox.fail("the run has ended without this client")
