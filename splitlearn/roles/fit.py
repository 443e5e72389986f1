"""Whether a client that comes fits: its configuration, classes and data to the others', its batches to the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig

from splitlearn.batches import batch_sizes
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


def check_batches(client: int, num_train: int, cfg: DictConfig, title: str, alone: str | None) -> None:
    """
    Args:
        client: that comes.
        num_train: its training samples.
        cfg: of the run.
        title: what people call the network.
        alone: what goes wrong in the network with a single sample in a batch; None if nothing does.

    Raises:
        UserError: the network cannot train on the batches that so many samples give; says what to do.
    """
    size = cfg.batch_size
    sizes = batch_sizes(num_train, size, cfg.last_batch)
    if num_train and not sizes:
        raise UserError(
            f"client {client} has {num_train} samples, fewer than batch_size={size}, so that last_batch=drop leaves"
            " it none: lower batch_size, or set last_batch=keep"
        )
    if 1 not in sizes or alone is None:
        return
    why = f"but {title} cannot train on a batch of one ({alone})"
    if size == 1:
        raise UserError(f"batch_size=1 has one sample in each batch, {why}: set batch_size=2 or more")
    if num_train == 1:
        raise UserError(f"client {client} has a single sample, {why}: give it more")
    raise UserError(
        f"client {client} has {num_train} samples, of which batch_size={size} leaves one for the last batch, {why}:"
        " set last_batch=merge, last_batch=drop, or another batch_size"
    )


def check_test(hellos: Iterable[Hello], cfg: DictConfig) -> None:
    """
    Raises:
        UserError: nobody has test samples.
    """
    if cfg.evaluate.get("on") != "server" and not any(hello.num_test for hello in hellos):
        raise UserError(
            "there are no test samples: put some into a test/ folder beside train/, set data.test_fraction above 0, or"
            " have the server's own tested with evaluate.on=server"
        )
