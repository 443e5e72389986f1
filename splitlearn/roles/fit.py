"""Whether a client that comes goes together with the others: its configuration, its classes, its data."""

from __future__ import annotations

from typing import Any

from splitlearn.config import differences, shared
from splitlearn.errors import UserError
from splitlearn.exchange.messages import Hello
from splitlearn.tasks.origin import Origin, disagreement, same_data


def compare(roster: Any, client: int, hello: Hello) -> None:
    """
    Raises:
        UserError: configuration or data do not fit those of the others.
    """
    if difference := differences(shared(roster.cfg), hello.config, "server", "client"):
        raise UserError(f"the server and client {client} are configured differently: {difference}")
    roster.about = roster.about or hello.about
    if reason := roster.agreement.task.disagreement(roster.about, hello.about):
        raise UserError(f"client {client} does not fit: {reason}")
    if not hello.origin:
        return
    before = roster.members[client].origin if client in roster.members else None
    if not roster.is_open and before not in (None, hello.origin):
        raise UserError(
            f"client {client}'s data are not those that this run was started with: put them back to go on with it,"
            " or start over with resume=never"
        )
    origin = Origin(**hello.origin)
    others = {other: its for other, its in roster.origins().items() if other != client}
    if reason := disagreement(client, origin, others, roster.cfg.partition.name):
        raise UserError(reason)
    if not roster.has_noted_same and (note := same_data({**others, client: origin})):
        roster.note(note)
        roster.has_noted_same = True
