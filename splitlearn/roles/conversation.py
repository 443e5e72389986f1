"""The server's side of an exchange over RPC: takes each client's requests as they are due, and drives their halves.

All clients go through one round of the exchange before any goes on to the next, so that an exchange of several round
trips does not wait for one client after the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from splitlearn.errors import NonFiniteError, PeerError, UserError
from splitlearn.exchange.exchange import Outcome, conclude
from splitlearn.exchange.halves import server_half
from splitlearn.exchange.messages import Evaluate, Step, StepReply
from splitlearn.exchange.parts import Part
from splitlearn.exchange.passage import Passage
from splitlearn.measure.ledger import Measured
from splitlearn.roles.evaluation import diverged
from splitlearn.roles.held import Kept
from splitlearn.roles.progress import share_of
from splitlearn.roles.talk import Talk
from splitlearn.seeds import derive, start_from
from splitlearn.segments.trainable import Trial, are_finite

T = TypeVar("T")


class Conversation:
    """
    Args:
        server: whose it is.
    """

    def __init__(self, server: Any):
        self.server, self.cfg, self.exchange = server, server.cfg, server.exchange
        self.undoes = self.cfg.nonfinite == "skip" or server.roster.is_open  # one client's part is not the run's end

    def train(self, participants: list[int], directive: str | None) -> list[Measured]:
        """Adds the gradients of the participants' losses to those of the server's part; answers each with its own.

        Returns what was measured, without clients that are left out, because their part is not finite, or that are
        gone.
        """
        roster = self.server.roster
        talks = {client: self._begin(client) for client in participants}
        for client, talk in talks.items():
            member = roster.members[client]
            place = self.server.progress.epoch, member.num_batches, member.batch
            talk.passage.observes = self.server.observer.keeps(self.exchange, *place)
            talk.share = share_of(member.batch + 1, member.num_train, self.cfg)
        for number, (sent, _) in enumerate(self.exchange.rounds, start=1):
            due = roster.due(talks, Step, "is too late for its step") if number > 1 else participants
            before, going_on = talks, {}
            for client in due:
                with roster.excusing(client):
                    if self._answer(client, talks[client], sent, number, directive):
                        going_on[client] = talks[client]
            talks = going_on
            for talk in (talk for client, talk in before.items() if client not in talks):  # what crossed of it, has
                self.server.recorder.left_out(talk.passage.transfers, talk.targets_bytes, talk.is_skipped)
        return [
            Measured(client, talk.outcome, talk.passage.transfers, talk.targets_bytes) for client, talk in talks.items()
        ]

    def replay(self, batches: dict[int, Kept]) -> list[Measured]:
        """The same as `train`, of what the server holds: nobody is asked or answered."""
        server, measured = self.server, []
        for client, (part, known) in batches.items():
            talk = self._begin(client)
            codecs, now = talk.passage.codecs, talk.passage.codecs.known()
            codecs.load(known)
            outcome = None
            try:
                with server.stopwatch("server compute"):
                    if self._advance(client, talk, part, is_first=True) is not None:
                        outcome = self._conclude(client, talk)
            except PeerError as error:  # nobody is there to be sent away for it
                if not server.roster.is_open:
                    raise
                server.roster.note(f"step {server.progress.step} leaves out a batch that the server holds: {error}")
            codecs.load(now)
            if outcome:
                server.trainable.share += talk.share
                measured.append(Measured(client, outcome, []))
        return measured

    def _begin(self, client: int, in_evaluation: bool = False) -> Talk:
        server = self.server
        passage = Passage(
            server.codecs[client],
            (client, server.progress.step),
            server.device,
            f"client {client}",
            server.agreement.max_samples,
            in_evaluation=in_evaluation,
            stopwatch=server.stopwatch,
        )
        begun = server_half(self.exchange, server.trainable.segment, passage, server.task)
        next(begun)
        return Talk(begun, passage)

    def _answer(self, client: int, talk: Talk, sent: type[Part], number: int, directive: str | None) -> bool:
        """One round of a training step; returns whether the client's part is in it."""
        server, member = self.server, self.server.roster.members[client]
        request, message = server.roster.take(client, Step, sent)
        started = time.perf_counter()
        if message.wants_to_stop:
            server.roster.let_go(client)
        with server.stopwatch("server compute"):
            talk.passage.reported = message.errors
            talk.passage.measures_error |= bool(message.errors)
            is_held = server.roster.plan.is_held
            known = talk.passage.codecs.known() if is_held else {}
            part = message.part and self._advance(client, talk, message.part, is_first=number == 1)
        is_last = number == len(self.exchange.rounds)
        if part is not None and not is_last:
            directive = None
        elif member.is_leaving and directive != "stop":
            directive = "leave"
        rates = None if part is not None and not is_last else server.updates.rates_for(member, directive)
        now = time.perf_counter()
        waiting_s = started - request.arrived_at
        request.reply(StepReply(part and part.body(), directive, waiting_s, now - started, rates).body())
        if part is None:
            member.batch += 1
            talk.half.close()
            talk.is_skipped = True
            return False
        if is_last:
            with server.stopwatch("server compute"):
                talk.outcome = self._conclude(client, talk)
            member.batch += 1
            if talk.outcome is None:
                talk.is_skipped = True
                return False
            if is_held:  # not before it is known to train
                server.held.keep(client, message.part, known)
            server.trainable.share += talk.share
            if talk.passage.observes:
                seen = {"channels": talk.passage.seen, "targets": talk.targets}
                server.observer.write(client, server.progress.epoch, member.batch - 1, seen)
                if not (server.topology.keeps_own or server.topology.hands_on):
                    newest = server.client_states[0]
                    server.observer.write_segment(server.progress.epoch, newest.get("segment", newest))
            member.num_samples += talk.outcome.num_samples
        return True

    def _advance(self, client: int, talk: Talk, part: Part, is_first: bool) -> Part | None:
        """The half's answer; None where the client's part is to be left out, because it is not finite."""
        talk.targets_bytes += part.targets_bytes()
        talk.targets = getattr(part, "targets", talk.targets)
        if is_first:
            start_from(derive(self.cfg.seed, "server", self.server.progress.step, client))  # dropout
        return self._tried(client, talk, lambda: talk.half.send(part))

    def _conclude(self, client: int, talk: Talk) -> Outcome | None:
        """What the half returns; None as of `_advance`."""
        if not self.exchange.answers_early:
            return conclude(talk.half)
        return self._tried(client, talk, lambda: conclude(talk.half))

    def _tried(self, client: int, talk: Talk, compute: Callable[[], T]) -> T | None:
        """What it gives; None where it is to be as if it had not been, because something is not finite."""
        server = self.server
        passage, known, num_crossed = talk.passage, talk.passage.codecs.mark(), len(talk.passage.transfers)
        trial = Trial(server.trainable.segment) if self.undoes or talk.share != 1 else None
        try:
            result = compute()
            if trial:
                trial.keep(talk.share)
            return result
        except NonFiniteError as error:
            if trial:
                trial.undo()
                passage.codecs.go_back(known)  # what it has encoded is not sent
            passage.forget_sent(num_crossed)
            if self.cfg.nonfinite == "skip":
                return None
            raise self._diverged(client, error) from None
        except PeerError:  # its payload, that is decoded in the half, is none
            if trial:
                trial.undo()
            raise

    def _diverged(self, client: int, error: NonFiniteError, what: str = "gradient") -> UserError:
        """What to raise where what a client is to get back is not finite: in evaluation the features."""
        if self.server.roster.is_open and are_finite(self.server.trainable.segment.parameters()):
            return PeerError(f"the {what} for what client {client} sent is not finite ({error})")  # and by it alone
        if what == "features":
            return diverged(self.server.progress.epoch, f"the features for client {client}", error)
        return UserError(
            f"step {self.server.progress.step}: the cut gradient for client {client} is not finite ({error}): training"
            " diverged; lower optimizer.lr, or leave out batches whose loss is not finite with nonfinite=skip"
        )

    def evaluate(self) -> list[tuple[int, Outcome]]:
        """What comes out for every test batch of the clients that are there, each with whose it is."""
        roster, rounds = self.server.roster, self.exchange.evaluation_rounds
        too_late = f"is too late for the evaluation after epoch {self.server.progress.epoch}"
        roster.answer(others := self.server.also_evaluate(), "evaluate")
        evaluating = sorted({*roster.in_round(), *others} & set(roster.here()))
        remaining = {client: roster.members[client].num_test_batches for client in evaluating}
        for client in evaluating:
            self.server.codecs[client].start_evaluation()
        outcomes = []
        while remaining := {client: number for client, number in remaining.items() if number}:
            begun = {one: self._begin(one, in_evaluation=True) for one in remaining}
            talks = begun
            for number, (sent, _) in enumerate(rounds, start=1):
                scored = {}  # not who is there: a new process of one that went wrong may have come meanwhile
                for client in roster.due(talks, Evaluate, too_late):
                    with roster.excusing(client):
                        self._score(client, talks[client], sent, is_last=number == len(rounds))
                        scored[client] = talks[client]
                talks = scored
            for talk in begun.values():  # what crossed, whatever came of it
                self.server.recorder.ledger.evaluated(talk.passage.transfers, talk.targets_bytes)
            for client, talk in talks.items():
                if not roster.is_open or math.isfinite(talk.outcome.sums["loss"]):  # else one client's would be all's
                    outcomes.append((client, talk.outcome))
            remaining = {client: remaining[client] - 1 for client in talks}
        return outcomes

    def _score(self, client: int, talk: Talk, sent: type[Part], is_last: bool) -> None:
        server = self.server
        request, message = server.roster.take(client, Evaluate, sent)
        started = time.perf_counter()
        with server.stopwatch("server compute"):
            talk.targets_bytes += message.part.targets_bytes()
            try:
                answer = talk.half.send(message.part)
            except NonFiniteError as error:
                raise self._diverged(client, error, "features") from None
            if is_last:
                talk.outcome = conclude(talk.half)
        now = time.perf_counter()
        request.reply(StepReply(answer.body(), None, started - request.arrived_at, now - started, None).body())
