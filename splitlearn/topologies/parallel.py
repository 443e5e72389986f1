"""SplitFed: all clients take part in every step, the server in the mean of their losses (Eq. 1 and 2, MS paper).

epoch   step 1: client 0, 1, 2 │ step 2: client 0, 1, 2 │ … │ mean of the clients' weights to all (average=epoch)
                               └ mean of their gradients to all (average=step)

With a codec `compressor@weights`, what the mean has changed of the one before is sent (see exchange/changes.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from splitlearn.errors import PeerError
from splitlearn.exchange.messages import Gradients, GradientsReply, StepReply, Weights, WeightsReply
from splitlearn.segments.trainable import are_finite, gradients_of, nbytes_of, state_of, trained
from splitlearn.topologies.averaging import average_states
from splitlearn.topologies.topology import Topology, is_evaluated, send_weights, take_weights


class Parallel(Topology):
    """
    Args:
        average: of the clients' weights after each "epoch", of their gradients after each "step", or "never".
        weighting: of the clients in the mean of an epoch: "uniform", or by their "samples".
    """

    def __init__(self, name: str = "parallel", average: str = "epoch", weighting: str = "uniform"):
        self.average, self.weighting = average, weighting
        self.averages_steps, self.keeps_own = average == "step", average == "never"

    # The server's end

    def num_steps(self, roster: Any, accumulate: int = 1) -> int:
        batches = (roster.members[client].num_due for client in roster.in_round())
        return max((-(-number // accumulate) for number in batches), default=0)

    def train(self, server: Any) -> None:
        while participants := server.gather():
            server.step(participants)

    def end_step(self, server: Any, directive: str | None) -> None:
        """The mean of the participants' gradients to every client, so that all segments take the same step (Eq. 2)."""
        if not self.averages_steps:
            return
        taken = [server.roster.take(client, Gradients) for client in server.roster.in_round()]
        server.recorder.ledger.book("weights_up", nbytes_of([message.gradients for _, message in taken]))
        gradients = [message.gradients for _, message in taken if message.gradients is not None]
        mean = average_states(gradients) if gradients else None
        for request, _ in taken:
            server.recorder.ledger.book("weights_down", nbytes_of(mean))
            request.reply(GradientsReply(mean, directive, server.updates.rates).body())

    def end_epoch(self, server: Any) -> None:
        """The mean of the weights of all clients that have done their batches, to each of them."""
        roster, epoch = server.roster, server.progress.epoch
        is_last = epoch == server.cfg.epochs
        plan = roster.plan
        sends = is_last if self.keeps_own else plan.is_trained
        parameters = server.agreement.parameters
        is_coded = self.changes and parameters
        average = server.agreement.changing_of(server.client_states[0]) if is_coded else None
        holds = None if not sends else "changes" if is_coded else "segment"
        done: dict[int, tuple[Any, Any]] = {}
        for client in roster.due(roster.in_round(), Weights, f"is too late for epoch {epoch}", waits=False):
            with roster.excusing(client):
                request, state = take_weights(server, client, holds)
                if holds == "changes":
                    state = self.changes.decode(state, average, parameters, f"client {client}")
                if roster.is_open and state is not None and not are_finite(state.values()):
                    raise PeerError(f"client {client} sent weights that are not finite: its training diverged")
                done[client] = request, state
        states, sent = [state for _, state in done.values() if state is not None], None
        if states and self.keeps_own and is_last:
            server.client_states = [self._own(server, client, done) for client in range(server.cfg.num_clients)]
        elif states and not self.keeps_own:
            members = [roster.members[client] for client in done]
            counts = roster.is_open and not plan.is_alone  # else each has done all batches, be it that none was sent
            num_samples = [member.num_samples if counts else member.num_train for member in members]
            by_samples = self.weighting == "samples" and any(num_samples)
            mean = sent = average_states(states, num_samples if by_samples else None)
            if is_coded:
                coded = self.changes.encode(mean, average, parameters, "server", epoch)
                sent, mean, self.changes.left_out = coded
            server.client_states = [server.client_states[0] | mean]  # with what is frozen
        keeps = self.keeps_own and server.runstate.keeps_own(epoch)
        directive = "save" if keeps or server.runstate.saves_epoch(epoch) else None
        if plan.is_alone:  # there was no step to say so
            for client in done:
                if roster.wants_to_stop(done[client][0]):
                    roster.let_go(client)
            if server.stop.asked_by is not None:
                directive, server.is_stopping = "stop", True
        # Those that were drawn get the newest weights when they are again, and before only to evaluate with.
        is_wanted = sends and not self.keeps_own and (server.cfg.membership.sample is None or is_evaluated(server))
        leaving = [client for client in done if plan.is_alone and directive != "stop" and roster.is_leaving(client)]
        for client, (request, _) in done.items():
            send_weights(server, request, sent if is_wanted else None, "leave" if client in leaving else directive)
        if directive or leaving:
            roster.hear_states(done if directive else leaving)
        if keeps:
            server.own_states = [self._own(server, client, {}) for client in range(server.cfg.num_clients)]

    def told(self, server: Any, client: int, state: dict[str, Any]) -> dict[str, Any]:
        average = server.client_states[0]
        if not self.changes or "segment" not in state or state["segment"] is average:
            return state
        return {**state, "average": server.agreement.changing_of(average)}

    def _own(self, server: Any, client: int, done: dict[int, tuple[Any, Any]]) -> Any:
        """The last weights that a client has handed in, with what is frozen; None where there are none."""
        if client in done:
            return server.client_states[0] | done[client][1]
        member = server.roster.members.get(client)
        return member.state["segment"] if member and member.state else None

    # A client's end

    def begin(self, client: Any, state: dict[str, Any]) -> None:
        if self.changes:
            self._mean = ("segment" in state and state.get("average")) or _weights_of(client)

    def train_client(self, client: Any) -> None:
        client.train_batches()
        if self.averages_steps:  # keep in step with clients that have more samples
            for _ in range(client.progress.epoch_step, client.num_steps):
                client.obey(self._take_mean_step(client, None))
        is_last = client.progress.epoch == client.cfg.epochs
        sends = is_last if self.keeps_own else client.plan.is_trained
        weights = _weights_of(client) if sends else None
        is_coded = self.changes and weights and client.agreement.parameters
        reply = self._exchange_changes(client, weights) if is_coded else client.exchange_weights(weights)
        if reply.state is not None:
            client.adopt(reply.state)
        client.obey(reply.directive)

    def _exchange_changes(self, client: Any, weights: Any) -> WeightsReply:
        """As `exchange_weights`, with what has changed of the average each way; the answer has the weights."""
        parameters, place = client.agreement.parameters, (f"client {client.index}", client.progress.epoch)
        sent, _, left_out = self.changes.encode(weights, self._mean, parameters, *place)
        reply = client.exchange_weights(sent)  # which may hand in the state of before
        self.changes.left_out = left_out
        self._mean = self.changes.decode(reply.state, self._mean, parameters, "the server")
        return replace(reply, state=self._mean)

    def end_batch(self, client: Any, share: float, reply: StepReply) -> str | None:
        if not self.averages_steps:
            return super().end_batch(client, share, reply)
        return self._take_mean_step(client, gradients_of(client.trainable.segment) if share else None)

    def _take_mean_step(self, client: Any, gradients: list | None) -> str | None:
        """Steps with the mean of the clients' gradients (Eq. 2 of the MS paper); None where this one has none."""
        reply = client.ask(Gradients(gradients), GradientsReply)
        if reply.mean is not None:
            for parameter, gradient in zip(trained(client.trainable.segment), reply.mean, strict=True):
                parameter.grad = gradient.to(client.device)
            client.trainable.collect(1.0)
            client.trainable.step(reply.rates)
        return reply.directive


def _weights_of(client: Any) -> Any:
    """What a client hands in of its weights."""
    return client.agreement.changing_of(state_of(client.trainable.segment))
