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

from splitlearn.batches import batch_sizes
from splitlearn.checkpoints import Checkpoints
from splitlearn.config import evaluates
from splitlearn.errors import NonFiniteError, PeerError, UserError
from splitlearn.exchange import network
from splitlearn.exchange.agreement import Agreement
from splitlearn.exchange.exchange import channels_of, exchange_from, know
from splitlearn.exchange.messages import Goodbye, GoodbyeReply, Welcome
from splitlearn.measure.recorder import Recorder
from splitlearn.measure.stopwatch import Stopwatch
from splitlearn.roles.conversation import Conversation
from splitlearn.roles.progress import Progress
from splitlearn.roles.roster import Roster
from splitlearn.roles.runstate import RunState
from splitlearn.segments.trainable import Trainable, are_finite, state_of
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
    """

    def __init__(self, cfg: DictConfig, device: torch.device, recorder: Recorder, checkpoints: Checkpoints):
        self.cfg, self.device, self.recorder = cfg, device, recorder
        self.task, self.exchange, self.topology = task_from(cfg), exchange_from(cfg), topology_from(cfg)
        self.channels = channels_of(cfg, self.exchange)
        self.agreement = Agreement(cfg, self.task, self.channels)
        self.stop, self.stopwatch, self.progress = StopRequest(), Stopwatch(), Progress()
        self.roster = Roster(
            cfg, self.agreement, self.progress, lambda text: recorder.display.note(escape(text)), self.stop.request
        )
        self.conversation = Conversation(self)
        self.runstate = RunState(self, checkpoints)
        self.client_states: list[Any] = []
        self.trainable: Trainable | None = None

    @property
    def inbox(self):
        return self.roster.inbox

    def run(self) -> float:
        """Trains and evaluates; returns the run's result, the first of the task's metrics.

        Raises:
            Stopped: it was asked to, and has a checkpoint to go on from.
        """
        self.runstate.find()
        self.roster.meet(self)
        self.recorder.start(self.topology.num_steps(self.roster))
        with self.stop:
            while self.progress.epoch <= self.cfg.epochs:
                epoch = self.progress.epoch
                self.trainable.segment.train()
                self.roster.start_epoch()
                self.topology.train(self)
                self.topology.end_epoch(self)
                if evaluates(self.cfg, epoch):
                    self.evaluate()
                self.trainable.schedule.step()
                self.recorder.end_epoch(epoch, self.stopwatch.take())
                self.progress.end_epoch()
                if self.runstate.saves_epoch(epoch):
                    self.runstate.save()
            self.runstate.wait()
            self.finish()
        return self.recorder.result

    # Meeting and parting

    def build(self, about: dict[str, int]) -> None:
        """Builds the network for the data of the clients, and cuts it."""
        built = network.build(self.cfg, about, pretrained=not self.runstate.goes_on)
        for note in built.notes:
            self.recorder.display.note(escape(note))
        self.alone = built.alone()
        know(self.channels, built, self.cfg)
        self.agreement.know(built.client, about)
        self.trainable = Trainable(built.server.to(self.device), self.cfg)
        self.client_states = [state_of(built.client)]
        self.recorder.describe(built.cuts, about, self.roster.num_samples)
        self.runstate.restore()

    def check_batches(self, client: int, num_train: int) -> None:
        """
        Raises:
            UserError: the network cannot train on the batches that so many samples give; says what to do.
        """
        size = self.cfg.batch_size
        sizes = batch_sizes(num_train, size, self.cfg.last_batch)
        if num_train and not sizes:
            raise UserError(
                f"client {client} has {num_train} samples, fewer than batch_size={size}, so that last_batch=drop leaves"
                " it none: lower batch_size, or set last_batch=keep"
            )
        if 1 not in sizes or self.alone is None:
            return
        why = f"but {self.task.headline(self.cfg)[0]} cannot train on a batch of one ({self.alone})"
        if size == 1:
            raise UserError(f"batch_size=1 has one sample in each batch, {why}: set batch_size=2 or more")
        if num_train == 1:
            raise UserError(f"client {client} has a single sample, {why}: give it more")
        raise UserError(
            f"client {client} has {num_train} samples, of which batch_size={size} leaves one for the last batch, {why}:"
            " set last_batch=merge, last_batch=drop, or another batch_size"
        )

    def welcome(self, client: int) -> Welcome:
        """What a client that joins goes on from: where it was, with the newest weights."""
        member, progress = self.roster.members[client], self.progress
        state = member.state or self.client_states[0]
        if member.state and member.state_epoch != progress.epoch and not self.topology.keeps_own:
            state = {**member.state, "segment": self.client_states[0]}
        num_steps = self.topology.num_steps(self.roster)
        return Welcome(self.agreement.about, num_steps, progress.epoch, progress.epoch_step, member.batch, state)

    def finish(self) -> None:
        """Writes the weights and the summary, and lets the clients go."""
        for index, state in enumerate(self.client_states):
            if state is None:  # of a client that never came
                continue
            suffix = f"_{index}" if len(self.client_states) > 1 else ""
            self.recorder.save(f"client_segment{suffix}.pt", state.get("segment", state))
        self.recorder.save("server_segment.pt", state_of(self.trainable.segment))
        self.recorder.finish()
        for client in self.roster.due(self.roster.here(), Goodbye, "did not say goodbye"):
            with self.roster.excusing(client):
                request, _ = self.roster.take(client, Goodbye)
                request.reply(GoodbyeReply(self.recorder.result).body())
        if self.roster.is_open:
            self.inbox.fail("the run has ended without this client")

    # Training

    def gather(self) -> list[int]:
        """The clients whose next batch is due; none if the epoch is over."""
        participants = self.roster.gather(lambda: self.stop.asked_by is not None)
        if participants is None:
            self.roster.hear_states([], "stop")
            self.runstate.save()
            self.runstate.end_early()
        return participants

    def step(self, participants: list[int]) -> None:
        """One step of all segments on a batch of each participant."""
        self.progress.begin_step()
        directive = self.runstate.directive()
        told_later = self.topology.averages_steps  # with the mean of the gradients
        self.trainable.optimizer.zero_grad()
        measured = self.conversation.train(participants, None if told_later else directive)
        if len(measured) > 1:
            for parameter in self.trainable.segment.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(len(measured))
        if measured:
            self.trainable.optimizer.step()
        self.topology.end_step(self, directive)
        self.recorder.step(self.progress, measured, self.trainable.learning_rate)
        if directive:
            others = None if self.topology.hands_on and directive == "save" else directive
            self.roster.hear_states(self.roster.here() if told_later else participants, others)
            self.topology.take_states(self, participants)
            self.runstate.save()
        elif leaving := [client for client in participants if self.roster.is_leaving(client)]:
            self.roster.hear_states(leaving)
        if directive == "stop":
            self.runstate.end_early()

    def diverged(self, client: int, error: NonFiniteError) -> UserError:
        """What to raise where a client's part of a step is not finite."""
        if self.roster.is_open and are_finite(self.trainable.segment.parameters()):
            return PeerError(f"the gradient for what client {client} sent is not finite ({error})")  # and by it alone
        return UserError(
            f"step {self.progress.step}: the cut gradient for client {client} is not finite ({error}): training"
            " diverged; lower optimizer.lr, or leave out batches whose loss is not finite with nonfinite=skip"
        )

    # Evaluation

    @torch.no_grad()
    def evaluate(self) -> None:
        """Loss and metrics over the test samples of the clients that are there."""
        self.trainable.segment.eval()
        outcomes = self.conversation.evaluate()
        if outcomes:
            return self.recorder.evaluation(self.progress.epoch, outcomes)
        if self.progress.epoch == self.cfg.epochs:
            raise PeerError(f"no client is left for the last evaluation: go on with resume={self.recorder.folder}")
