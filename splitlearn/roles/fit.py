"""Whether a client that comes fits: its configuration, classes and data to the others', its batches to the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from omegaconf import DictConfig
from torch.nn.modules.dropout import _DropoutNd

from splitlearn.batches import counted
from splitlearn.config import differences, shared
from splitlearn.console import legible
from splitlearn.errors import PeerError, UserError
from splitlearn.exchange import network
from splitlearn.exchange.channel import Channel
from splitlearn.exchange.channels import know
from splitlearn.exchange.latest import sample_nbytes
from splitlearn.exchange.messages import Hello
from splitlearn.exchange.network import Network
from splitlearn.tasks import ClientData, Task
from splitlearn.tasks.origin import Origin, disagreement, same_data


def compare(roster: Any, client: int, hello: Hello) -> None:
    """
    Raises:
        PeerError: configuration or data do not fit those of the others.
    """
    if difference := differences(shared(roster.cfg), hello.config, "server", "client"):
        raise PeerError(f"the server and client {client} are configured differently: {difference}")
    if reason := roster.agreement.task.disagreement(roster.about or hello.about, hello.about):
        raise PeerError(f"client {client} does not fit: {legible(reason)}")
    if not hello.origin:
        return
    before = roster.members[client].origin if client in roster.members else None
    if not roster.is_open and before not in (None, hello.origin):
        raise PeerError(
            f"client {client}'s data are not those that this run was started with: put them back to go on with it,"
            " or start over with resume=never"
        )
    origin = Origin(**hello.origin)
    others = {other: its for other, its in roster.origins().items() if other != client}
    if reason := disagreement(client, origin, others, roster.cfg.partition.name):
        raise PeerError(legible(reason))
    if not roster.has_noted_same and (note := same_data({**others, client: origin})):
        roster.note(note)
        roster.has_noted_same = True


def network_for(server: Any, about: dict[str, Any]) -> Network:
    """A server's network, with the weights that it starts from, for data that are like this.

    Raises:
        PeerError: there is none for the data of an open run's first client, but maybe for another's.
        UserError: there is none, whatever the data are: the mistake is the server's own.
    """

    def built_for(about: dict[str, Any]) -> Network:
        built = network.build(server.cfg, about, pretrained=not server.runstate.goes_on)
        server.runstate.initialise(built)
        know(server.channels, built, server.cfg)
        server.task.know(about)
        if server.cfg.get("delta") and (note := dropout_note(built)):
            built.notes.append(note)
        return built

    try:
        return built_for(about)
    except UserError as error:
        if not server.roster.is_open:
            raise
        try:
            built_for(server.task.default_about(server.cfg))
        except UserError as other:
            if str(other) == str(error):  # where the data matter, it says another thing of others
                raise
        raise PeerError(str(error)) from None


def check_batches(client: int, num_train: int, cfg: DictConfig, title: str, alone: str | None) -> None:
    """
    Args:
        client: that comes.
        num_train: its training samples.
        cfg: of the run.
        title: what people call the network.
        alone: what goes wrong in the network with a single sample in a batch; None if nothing does.

    Raises:
        PeerError: the network cannot train on the batches that so many samples give; says what to do.
        UserError: on those that anyone's give.
    """
    size = cfg.batch_size
    num_full, last = counted(num_train, size, cfg.last_batch)
    if num_train and not num_full and not last:
        raise PeerError(
            f"client {client} has {num_train} samples, fewer than batch_size={size}, so that last_batch=drop leaves"
            " it none: lower batch_size, or set last_batch=keep"
        )
    if 1 not in (size if num_full else last, last) or alone is None:
        return
    why = f"but {title} cannot train on a batch of one ({alone})"
    if size == 1:
        raise UserError(f"batch_size=1 has one sample in each batch, {why}: set batch_size=2 or more")
    if num_train == 1:
        raise PeerError(f"client {client} has a single sample, {why}: give it more")
    raise PeerError(
        f"client {client} has {num_train} samples, of which batch_size={size} leaves one for the last batch, {why}:"
        " set last_batch=merge, last_batch=drop, or another batch_size"
    )


def check_latest(members: Mapping[int, Any], channels: Mapping[str, Channel], task: Task, cfg: DictConfig) -> None:
    """
    Raises:
        PeerError: what is held of all clients' samples may take more memory than it is allowed.
    """
    most = most_latest(members, channels, task, cfg)
    if most > cfg.get("delta_gb", inf) * 1e9:
        number = sum(member.num_numbered for member in members.values())
        raise PeerError(
            f"delta={cfg.delta} may take the server {most / 1e9:.3g} GB of memory, for the smashed data of {number:,}"
            f" samples, more than delta_gb={cfg.delta_gb:g}: allow more, choose delta=uint8, or set delta=null"
        )


def most_latest(members: Mapping[int, Any], channels: Mapping[str, Channel], task: Task, cfg: DictConfig) -> int:
    """Bytes that the server holds at most of the samples of these clients."""
    number, longest = sum(member.num_numbered for member in members.values()), task.longest(cfg)
    return number * sum(sample_nbytes(one, longest) for one in channels.values() if one.delta)


def latest_notes(server: Any) -> list[str]:
    """What the user should know of what is held of samples, once clients have come."""
    cfg, notes = server.cfg, []
    if not any(one.delta for one in server.channels.values()):
        return notes
    most = most_latest(server.roster.members, server.channels, server.task, cfg)
    more = " so far" * server.roster.is_open
    notes.append(
        f"delta={cfg.delta} holds the smashed data of each training sample: up to {most / 1e6:,.1f} MB{more} in the"
        " server's memory and in each checkpoint, and each client its own"
    )
    if cfg.data.get("transform") is not None:
        notes.append("delta: data.transform has to be the same for a sample each time, or its change is not small")
    return notes


def dropout_note(built: Network) -> str | None:
    """What the user should know where a sample's map is another one each time."""
    (_, first), *_ = built.parts()
    if not any(getattr(one, "p", 0) > 0 for one in first.modules() if isinstance(one, _DropoutNd)):
        return None
    return "delta: the client's part has dropout, by which smashed data change each time; without, changes are smaller"


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


def check_numbered(data: ClientData, cfg: DictConfig) -> None:
    """Raises UserError where a client's loader does not tell which samples a batch has."""
    if len(data.train) and not data.num_numbered:
        raise UserError(
            f"delta={cfg.delta} has to know which samples a batch has, and this task's loader does not tell: load with"
            " client_data of splitlearn.tasks.loading, or set delta=null"
        )
