"""The server: holds the server's part of the network and trains it on what the clients send.

It runs on the main thread from top to bottom and takes each client's request from the inbox when it is due, always in
the clients' order, so that sums of floats do not depend on who was faster. In one step (Eq. 1 and 2 of the MS paper)
it answers every client with the gradient of that client's own loss, and steps with the mean over the clients.

What a step computes is the exchange's, who takes part in it the topology's, and who is there the roster's.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from rich.markup import escape

from splitlearn import saved
from splitlearn.checkpoints import Checkpoints
from splitlearn.config import evaluates
from splitlearn.errors import PeerError, typed
from splitlearn.exchange.agreement import Agreement
from splitlearn.exchange.channels import channels_of
from splitlearn.exchange.codecs import OfClients
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.messages import Goodbye, GoodbyeReply, Welcome
from splitlearn.exchange.rounds import RoundReply
from splitlearn.measure.recorder import Recorder
from splitlearn.measure.samples import samples_in_words, unreadable_of
from splitlearn.measure.stopwatch import Stopwatch
from splitlearn.privacy.observing import Observer
from splitlearn.roles.conversation import Conversation
from splitlearn.roles.epochs import end_epoch, num_steps, start_epoch
from splitlearn.roles.firstmaps import fit
from splitlearn.roles.fit import check_batches, check_latest, network_for
from splitlearn.roles.held import Held
from splitlearn.roles.owntest import OwnTest
from splitlearn.roles.progress import Progress
from splitlearn.roles.roster import Roster
from splitlearn.roles.runstate import RunState
from splitlearn.roles.updates import Updates
from splitlearn.roles.verdict import Verdict
from splitlearn.segments.trainable import Trainable, nbytes_of, state_of
from splitlearn.stopping import StopRequest
from splitlearn.tasks import task_from
from splitlearn.topologies import topology_from


class Server:
    """One run's server.

    Args:
        cfg: the run's configuration, with num_clients set.
        device: of the server's part.
        recorder: where measurements go.
        checkpoints: where the run's state goes, and comes from where a run goes on.

    Attributes:
        client_states: the clients' weights, as averaged or handed on last: one, or without averaging each client's.
        own_states: without averaging, each client's after an epoch that may be the best or the last; else None.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, recorder: Recorder, checkpoints: Checkpoints):
        self.cfg, self.device, self.recorder = cfg, device, recorder
        self.task, self.exchange, self.topology = task_from(cfg), exchange_from(cfg), topology_from(cfg)
        self.channels = channels_of(cfg, self.exchange)
        self.codecs = OfClients(self.channels, cfg.num_clients)
        self.agreement = Agreement(cfg, self.task, self.channels, self.exchange.phases)
        self.stop, self.stopwatch = StopRequest(), Stopwatch()
        self.progress = Progress(phase=next(iter(self.exchange.phases), None))
        self.roster = Roster(
            cfg, self.agreement, self.progress, lambda text: recorder.display.note(escape(text)), self.stop.request
        )
        self.conversation = Conversation(self)
        self.runstate, self.verdict = RunState(self, checkpoints), Verdict(self)
        self.updates, self.held, self.observer = Updates(self), Held(self), Observer(cfg, recorder.folder)
        self.client_states: list[Any] = []
        self.own_states: list[Any] | None = None
        self.trainable: Trainable | None = None
        self.own_test: OwnTest | None = None  # with evaluate.on=server
        self.is_stopping = False  # after this epoch

    @property
    def inbox(self):
        return self.roster.inbox

    def run(self) -> float:
        """Trains and evaluates; returns the run's result, the first of the task's metrics.

        Raises:
            Stopped: it was asked to, and has a checkpoint to go on from.
        """
        if self.cfg.evaluate.get("on") == "server":
            self.own_test = OwnTest(self)
        self.runstate.find()
        self.roster.meet(self)
        self.runstate.begin()
        if self.observer.note:
            self.recorder.display.note(self.observer.note)
        start_epoch(self)
        self.recorder.start(num_steps(self))
        fit(self, self.recorder.cuts)
        self.updates.start()
        with self.stop:
            while not self.is_over:
                epoch, self.own_states = self.progress.epoch, None
                self.trainable.segment.train()
                start_epoch(self)
                if self.roster.asks and not self.roster.is_open:  # where the roster answers when they ask
                    self.roster.answer(self.roster.in_round(), "train")
                if self.roster.plan.replays:
                    self.held.train()
                self.topology.train(self)
                self.updates.step()  # in an open run, whose clients may be gone before the last step is complete
                self.topology.end_epoch(self)
                if evaluates(self.cfg, epoch):
                    self.evaluate()
                end_epoch(self)
            self.runstate.wait()
            self.verdict.wait()
            self.finish()
        return self.recorder.result

    # Meeting and parting

    def build(self, about: dict[str, Any]) -> None:
        """Builds the network for the data of the clients, and cuts it. Raises as Host says."""
        built = network_for(self, about)
        for note in built.notes:
            self.recorder.display.note(escape(note))
        self.unfitted = [] if self.runstate.goes_on else built.unfitted
        self.alone = built.alone()
        if self.own_test:
            about = self.own_test.know(built.client, about)
        self.agreement.know(built.client, about)
        self.trainable = Trainable(built.server.to(self.device), self.cfg)
        self.client_states = [state_of(built.client)]
        num_own = self.own_test and self.own_test.data.num_test
        are_of_epoch = bool(self.cfg.get("samples_per_epoch"))
        samples = samples_in_words(self.roster.members, self.cfg.num_clients, num_own, are_of_epoch)
        self.recorder.describe(built.cuts, about, samples)
        self.runstate.restore()
        self.codecs.keep_frozen(next(filter(None, self.client_states)), self.agreement)

    def check_batches(self, client: int, num_train: int) -> None:
        check_batches(client, num_train, self.cfg, self.task.headline(self.cfg)[0], self.alone)
        check_latest(self.roster.members, self.channels, self.task, self.cfg)

    def welcome(self, client: int) -> Welcome:
        """What a client that joins goes on from: where it was, with the newest weights."""
        member, progress = self.roster.members[client], self.progress
        state = member.state or next(filter(None, self.client_states))
        if member.state and member.state_epoch != progress.epoch and not self.topology.keeps_own:
            state = {**member.state, "segment": self.client_states[0]}
        latest = self.codecs.welcome(client, state, member.num_numbered)
        place = progress.epoch, progress.epoch_step, member.batch, self.topology.told(self, client, state)
        return Welcome(self.agreement.about, num_steps(self), *place, progress.phase, list(self.unfitted), latest)

    def finish(self) -> None:
        """Writes the weights and the summary, and lets the clients go."""
        if self.roster.asks:
            self.roster.answer(self.roster.here(), "over")
        for name, state in self.runstate.weights().items():
            self.recorder.save(name, state)
        self.recorder.unreadable = unreadable_of(self.roster.members, self.own_test and self.own_test.data.origin)
        self.recorder.ledger.delta_bytes = self.codecs.latest_nbytes
        self.recorder.finish()
        if shown := self.task.demonstrate(self.cfg, lambda: saved.load(self.recorder.folder).model()):
            self.recorder.display.show(shown)
        for client in self.roster.due(self.roster.here(), Goodbye, "did not say goodbye"):
            with self.roster.excusing(client):
                request, _ = self.roster.take(client, Goodbye)
                request.reply(GoodbyeReply(self.recorder.result).body())
        self.inbox.fail("the run has ended without this client")

    # Training

    @property
    def is_over(self) -> bool:
        return self.progress.epoch > self.cfg.epochs or self.recorder.stopped_early is not None

    def part(self, client: int, part: str) -> RoundReply:
        """What a client does next. Who trains in a round begins it with the newest weights and a new optimizer."""
        member, state = self.roster.members[client], None
        begins = self.roster.sample is not None and not self.topology.hands_on
        if member.state is not None and member.state_epoch == self.progress.epoch:
            begins = False  # it comes back to its round
        if not self.topology.keeps_own and (part == "evaluate" or (part == "train" and begins)):
            newest = self.client_states[0]
            state = self.agreement.changing_of({"segment": newest.get("segment", newest), "optimizer": {}})
            self.codecs.load(client, state)
        self.recorder.ledger.book("weights_down", nbytes_of(state))
        return RoundReply(part, self.progress.epoch, num_steps(self), state, self.progress.phase)

    def gather(self) -> list[int]:
        """The clients whose next batch is due; none if the epoch is over."""
        participants = self.roster.gather(lambda: self.stop.asked_by is not None)
        if participants is None:
            self.roster.hear_states([], "stop")
            self.updates.step()
            self.runstate.save()
            self.runstate.end_early()
        return participants

    def step(self, participants: list[int]) -> None:
        """One step of all segments on a batch of each participant."""
        self.roster.hear_waiting()
        self.updates.begin_step(participants)
        directive = self.runstate.directive()
        told_later = self.topology.averages_steps  # with the mean of the gradients
        measured = self.conversation.train(participants, None if told_later else directive)
        if self.updates.is_due:
            self.updates.step()
        self.topology.end_step(self, directive)
        self.recorder.step(self.progress, measured, self.updates.rates["lr"])
        if directive:
            others = None if self.topology.hands_on and directive == "save" else directive
            self.roster.hear_states(self.roster.in_round() if told_later else participants, others)
            self.topology.take_states(self, participants)
            self.runstate.save()
        elif leaving := [client for client in participants if self.roster.is_leaving(client)]:
            self.roster.hear_states(leaving)
        if directive == "stop":
            self.runstate.end_early()

    # Evaluation

    def also_evaluate(self) -> list[int]:
        """Who evaluates beside those of the round: all others after the last epoch, and where results are compared."""
        is_for_all = self.verdict.compares or self.progress.epoch == self.cfg.epochs
        return self.roster.waiting() if is_for_all else []

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss and metrics over the test samples of the clients that are there, or of the server."""
        self.trainable.segment.eval()
        if self.own_test:
            outcomes, in_all = self.own_test.evaluate(), self.own_test.data.num_test
        else:
            outcomes, in_all = self.conversation.evaluate(), self.roster.num_test_in_all()
        if outcomes:
            self.recorder.evaluation(self.progress.epoch, outcomes, in_all)
            return self.verdict.hear()
        if self.progress.epoch == self.cfg.epochs:
            raise PeerError(
                f"no client is left for the last evaluation: go on with {typed('resume', self.recorder.folder)}"
            )
