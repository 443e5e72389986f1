"""Vanilla split learning: one client at a time trains on its samples, then hands weights and optimizer state on.

    epoch   client 0: all its batches ─► client 1: all its batches ─► … ─► client 0 of the next epoch
                                      hands on
Source: Gupta and Raskar 2018, arXiv:1810.06060.
"""

from __future__ import annotations

from typing import Any

from splitlearn.topologies.topology import Topology, is_evaluated, send_weights, take_weights


class Sequential(Topology):
    hands_on = True

    def __init__(self, name: str = "sequential"):
        self._has_done_all = False  # of a turn, but has not handed it on

    # The server's end

    def num_steps(self, roster: Any, accumulate: int = 1) -> int:
        return sum(-(-roster.members[client].num_due // accumulate) for client in roster.in_round())

    def train(self, server: Any) -> None:
        for client in self.order(server):
            member = server.roster.members[client]
            if member.batch == 0:
                self._hand_over(server, client)
            while member.batch < member.num_due:
                server.step([client])
            request, state = take_weights(server, client, "trainable")
            state.pop("own", None)  # sums that came beside it, and are booked
            server.client_states = [server.codecs.completed(client, state)]
            send_weights(server, request, None)

    def order(self, server: Any) -> list[int]:
        """Whose turns are left in the epoch, where it begins or goes on.

        A checkpoint is of a step: the last of those that have begun has not handed on, be it that it has done all.
        """
        members, clients = server.roster.members, server.roster.in_round()
        *_, last = None, *(client for client in clients if members[client].batch)
        return [client for client in clients if client == last or members[client].batch < members[client].num_due]

    def end_epoch(self, server: Any) -> None:
        if is_evaluated(server):
            for client in server.roster.in_round():
                self._hand_over(server, client)  # all evaluate with the newest

    def take_states(self, server: Any, participants: list[int]) -> None:
        server.client_states = [server.roster.members[participants[0]].state]
        for member in server.roster.members.values():
            member.state = None  # of those whose turn it is not, it is of no use

    def _hand_over(self, server: Any, client: int) -> None:
        request, _ = take_weights(server, client, None)
        server.codecs.load(client, server.client_states[0])
        send_weights(server, request, server.agreement.changing_of(server.client_states[0]))

    def told(self, server: Any, client: int, state: dict[str, Any]) -> dict[str, Any]:
        member = server.roster.members[client]
        has_done_all = 0 < member.num_due <= member.batch and client in self.order(server)
        return {**state, "has_done_all": True} if has_done_all else state

    # A client's end

    def begin(self, client: Any, state: dict[str, Any]) -> None:
        self._has_done_all = "has_done_all" in state

    def train_client(self, client: Any) -> None:
        if client.progress.batch < client.num_batches or self._has_done_all:
            self._has_done_all = False
            if client.progress.batch == 0:
                client.load(client.exchange_weights(None).state)
            client.train_batches()
            client.exchange_weights(client.state())
        if is_evaluated(client):
            client.load(client.exchange_weights(None).state)
