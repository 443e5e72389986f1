"""A client: holds data and its parts of the network, and trains them with the server.

What a step computes is the exchange's, when it is sent and answered the schedule's (schedule.py), and what comes after
a step and an epoch the topology's.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from splitlearn.config import clients_evaluate, shared
from splitlearn.errors import PeerError, Rejoin, Stopped
from splitlearn.exchange import network
from splitlearn.exchange.agreement import Agreement, as_sent
from splitlearn.exchange.channels import channels_of, know
from splitlearn.exchange.codecs import Codecs
from splitlearn.exchange.exchange import Outcome, exchange_from
from splitlearn.exchange.messages import (
    Goodbye,
    GoodbyeReply,
    Hello,
    Message,
    State,
    Weights,
    WeightsReply,
    Welcome,
)
from splitlearn.exchange.plan import Plan
from splitlearn.measure.screen import Screen
from splitlearn.measure.stopwatch import Stopwatch
from splitlearn.privacy.observing import Observer
from splitlearn.rates import Clock
from splitlearn.roles.entering import enters
from splitlearn.roles.evaluation import evaluate
from splitlearn.roles.firstmaps import help_fit
from splitlearn.roles.fit import check_numbered
from splitlearn.roles.progress import ClientProgress
from splitlearn.roles.schedule import schedule_from
from splitlearn.roles.waiting import LEFT, Overdue, ask_and_tell, in_background, leave, result_of
from splitlearn.segments.trainable import Trainable
from splitlearn.stopping import StopRequest
from splitlearn.tasks import task_from
from splitlearn.topologies import topology_from
from splitlearn.transport import ServerProxy


class Client:
    """One of a run's clients.

    Args:
        cfg: the run's configuration, with num_clients set.
        index: which client this is, 0 to num_clients-1.
        device: of its parts of the network.
        server: takes this client's calls.
        screen: shows the user how it goes; None where another rank does.
        folder: of the run, for observe.inputs; None where it is not here.
    """

    def __init__(
        self,
        cfg: DictConfig,
        index: int,
        device: torch.device,
        server: ServerProxy,
        screen: Screen | None = None,
        folder: Path | None = None,
    ):
        self.cfg, self.index, self.device, self.server = cfg, index, device, server
        self.screen = screen or Screen(is_shown=False)
        self.task, self.exchange, self.topology = task_from(cfg), exchange_from(cfg), topology_from(cfg)
        self.channels = channels_of(cfg, self.exchange)
        self.codecs = Codecs(self.channels, "up")
        self.agreement = Agreement(cfg, self.task, self.channels, self.exchange.phases)
        self.schedule, self.observer = schedule_from(cfg), Observer(cfg, folder, inputs=True)
        self.stopwatch, self.stop = Stopwatch(), StopRequest()
        self.rates: dict[str, Any] | None = None  # of the last answer to a batch
        self._own: Counter[str] = Counter()  # sums over the batches since the weights went, by a loss of its own
        self.is_in = False  # has joined

    def run(self) -> float:
        """Trains and evaluates with the others; returns the run's result, the first of the task's metrics."""
        self.load_data()
        if self.cfg.num_clients > 1:
            self.screen.tell("waiting for the other clients")
        with self.stop:
            while True:
                try:
                    self.join()
                    self.train()
                    return self.ask(Goodbye(), GoodbyeReply).result
                except Rejoin:
                    if self.wants_to_stop():
                        raise Stopped(LEFT, self.stop.asked_by) from None
                    self.screen.tell("joining again: the server was started anew, or went on without this client")
                except Overdue as overdue:
                    raise Stopped(leave(self, *overdue.args), self.stop.asked_by) from None
                except PeerError as error:
                    if not self.wants_to_stop():
                        raise
                    raise Stopped(str(error), self.stop.asked_by) from None  # the others ended meanwhile

    def load_data(self) -> None:
        self.data = self.task.load(self.cfg, self.index, self.cfg.num_clients)
        self.num_batches = len(self.data.train)
        if self.codecs.latest:
            check_numbered(self.data, self.cfg)

    def join(self) -> None:
        """Tells the server about this client, and gets the first weights, or the state to go on from."""
        self.is_in = False
        data, origin = self.data, self.data.origin and dict(vars(self.data.origin))
        hello = Hello(shared(self.cfg), data.about, data.num_train, data.num_test, origin, data.num_numbered)
        welcome = self.ask_patiently(hello, Welcome)
        built = network.build(self.cfg, welcome.about)
        know(self.channels, built, self.cfg)
        self.agreement.know(built.client, welcome.about)
        self.trainable = Trainable(built.client.to(self.device), self.cfg)
        self.load(welcome.state)
        self.codecs.begin(data.num_numbered, welcome.latest)
        own = dict(welcome.state.get("own", {"client": None}))
        self._own = Counter(own if own.pop("client") == self.index else {})
        self.num_steps = welcome.num_steps  # of all clients, in an epoch
        self.clock = Clock(self.cfg, self.num_steps)  # of epochs in which it trains alone
        begun = self.exchange.plan(welcome.epoch, welcome.phase).begun(welcome.batch, self.num_batches)
        self.progress = ClientProgress(welcome.epoch, welcome.step, begun, welcome.phase)
        help_fit(self, built.cuts, welcome.unfitted)
        self.topology.load(welcome.state if "segment" in welcome.state else {})
        self.topology.begin(self, welcome.state)
        self.is_in = True
        goes_on = f", going on in epoch {welcome.epoch}" if welcome.epoch > 1 or welcome.step else ""
        self.screen.tell(
            f"joined as client {self.index} of {self.cfg.num_clients}, {data.num_train:,} training samples, cut"
            f" {self.cfg.cut}{goes_on}" + f"; {self.observer.note}" * bool(self.observer.note)
        )
        self.screen.start()

    def train(self) -> None:
        """What is left of the run."""
        while enters(self):
            self.topology.train_client(self)
            if clients_evaluate(self.cfg, self.progress.epoch):
                evaluate(self)
            self.screen.epoch(self.progress.epoch, self.cfg.epochs, self.task)
            self.progress.end_epoch()

    @property
    def plan(self) -> Plan:
        """Of the epoch."""
        return self.exchange.plan(self.progress.epoch, self.progress.phase)

    def learned(self, outcome: Outcome) -> None:
        """What a batch came to by a loss of the client's own."""
        self._own.update(outcome.sums, samples=outcome.num_samples, loss=outcome.loss * outcome.num_samples)

    def train_batches(self) -> None:
        """What is left of the epoch."""
        if not (self.plan.every or self.plan.is_trained):
            return
        self.trainable.segment.train(self.plan.is_trained)
        self.data.train.batch_sampler.start_at(self.progress.epoch, self.progress.batch)
        self.schedule(self)

    def state(self) -> dict[str, Any]:
        """All that it would go on from elsewhere, but for what is frozen."""
        state = self.agreement.changing_of(self.trainable.state())
        own = {"own": {"client": self.index, **self._own}} if self._own else {}
        return {**state, "codecs": self.codecs.state(), **own, **self.topology.state()}

    def load(self, state: Any) -> None:
        """Goes on from another state, which may be all weights alone; what is frozen need not be in it.

        Raises:
            PeerError: it is none of this network's.
        """
        state = self._as_agreed(state)
        self.trainable.load(state)
        self.codecs.load(state.get("codecs", {}))

    def adopt(self, weights: Any) -> None:
        """Goes on with other weights, and with its own optimizer and codecs.

        Raises:
            PeerError: they are none of this network's.
        """
        self.trainable.load(self._as_agreed(weights))

    def _as_agreed(self, state: Any) -> dict[str, Any]:
        with as_sent("the server", "state"):
            return self.agreement.whole(state, self.trainable.segment.frozen_state())

    # The conversation

    def ask(self, message: Message, reply: type[Message], *context: Any, anew: bool = False) -> Any:
        """Sends a message and waits for its answer; `anew`, in the place of the one before."""
        call = self.server.call_anew if anew else self.server.call
        return reply.parse(call(message.kind, *message.body()), "the server", self.agreement, *context)

    def ask_patiently(self, message: Message, reply: type[Message]) -> Any:
        """The same before this client has joined, which may leave meanwhile (see `result_of`)."""
        return result_of(self, in_background(self.ask, message, reply))

    def ask_timed(self, message: Message, reply: type[Message], *context: Any) -> Any:
        """An answer that says how long its request waited at and took the server, and how long the call took."""
        started = time.perf_counter()
        answer = self.ask(message, reply, *context)
        return answer, time.perf_counter() - started

    def exchange_weights(self, state: Any) -> WeightsReply:
        """Weights up, and what all go on with down."""
        message = partial(Weights, state, self.stopwatch.take(), dict(self._own) or None)
        while not (reply := ask_and_tell(self, message, WeightsReply)).is_answer:
            self.obey(reply.directive)  # others are not as far, and this client's state is wanted meanwhile
        self._own.clear()  # which the server has now
        return reply

    def obey(self, directive: str | None) -> None:
        """Hands in this client's state where the server asks for it: to "save" it, before a "stop", or to "leave"."""
        if directive is not None:
            self.server.call(State.kind, *State(self.state(), False).body())
        if directive in ("stop", "leave"):
            raise Stopped("stopped with the run" if directive == "stop" else LEFT, self.stop.asked_by or signal.SIGTERM)

    # Leaving

    def wants_to_stop(self) -> bool:
        return self.stop.asked_by is not None

    def may_leave(self) -> bool:
        return self.cfg.membership.open or not self.is_in
