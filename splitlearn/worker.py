"""One rank of a run from start to end: finds its place, meets the others, plays its role."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import closing
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from splitlearn import config, kinds, private, transport
from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import PeerError, Stopped, UserError
from splitlearn.exchange.exchange import exchange_from
from splitlearn.exchange.messages import Failed
from splitlearn.folder import held
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.measure.screen import Screen
from splitlearn.roles.client import Client
from splitlearn.roles.server import Server
from splitlearn.tasks import task_from
from splitlearn.transport import Patience, Place, ServerProxy, Tls, has_certificates, is_loopback, read_token, tls_from

DEFAULT_NUM_CLIENTS = 2
WITHOUT_TOKEN = b"the certificates say who is who"
# Where all ranks have one command line and one disk, what one cannot do is no matter of this client.
COMMON = re.compile(r"client \d+ stopped: (?!crashed with|interrupted)(.*)", re.DOTALL)


def place_from(cfg: DictConfig) -> Place | None:
    """This process's place by torchrun's environment or by `role`; None where it is to start all ranks itself.

    Raises:
        UserError: the number of ranks and num_clients do not fit, or client.index is out of range.
    """
    is_torchruns = "TORCHELASTIC_RUN_ID" in os.environ and cfg.role is None
    if cfg.role is None and not is_torchruns:
        return None
    for key, least in (("num_clients", 1), ("client.index", 0)):
        value = OmegaConf.select(cfg, key)
        if not (type(value) is int and value >= least) and not (key == "num_clients" and value is None):
            raise UserError(f"{key}={kinds.shown(value)} must be a whole number, at least {least}")
    host, port = (OmegaConf.select(cfg, f"rpc.{name}") for name in ("host", "port"))  # checked with all the rest
    if is_torchruns:
        world_size = int(os.environ["WORLD_SIZE"])
        if world_size < 2:
            raise UserError("torchrun started 1 rank: a server and a client need --nproc-per-node 2 at least")
        if cfg.num_clients not in (None, world_size - 1):
            raise UserError(
                f"num_clients={cfg.num_clients} but torchrun started {world_size} ranks, a server and"
                f" {world_size - 1} clients: leave num_clients out, or set --nproc-per-node {cfg.num_clients + 1}"
            )
        return Place(
            rank=int(os.environ["RANK"]),
            num_clients=world_size - 1,
            host=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            desk_port=0 if str(port) == os.environ["MASTER_PORT"] else port,
            one_machine=os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"],
        )
    if cfg.num_clients is None:
        raise UserError(f"role={cfg.role} needs num_clients=<how many clients will come>")
    if cfg.role == "server":
        return Place(0, cfg.num_clients, host, port, is_fleet=False)
    if cfg.client.index >= cfg.num_clients:
        raise UserError(f"client.index={cfg.client.index} is out of range: choose 0 to {cfg.num_clients - 1}")
    return Place(1 + cfg.client.index, cfg.num_clients, host, port, is_fleet=False)


def run_rank(
    cfg: DictConfig,
    place: Place,
    folder: Path,
    token: bytes | None = None,
    origin: dict[str, str] | None = None,
) -> float:
    """Plays one rank's role; returns the run's result, the first of the task's metrics, on every rank.

    Args:
        cfg: the checked configuration.
        place: this rank's.
        folder: where the server writes.
        token: of this run; None takes the user's (see transport/token.py).
        origin: of the server's Recorder.

    Raises:
        UserError: something that the user can mend went wrong, here or on another rank.
    """
    # On one machine there is nobody to hide from, and the seed alone says what is drawn.
    secret_file = None if place.one_machine else cfg.get("secret_file")
    if secret_file and cfg.get("defence"):
        private.read(secret_file, "secret_file")
    cfg = OmegaConf.merge(cfg, {"num_clients": place.num_clients, "secret_file": secret_file})
    role = "server" if place.rank == 0 else "client"
    if cfg[role].num_threads is not None:
        torch.set_num_threads(cfg[role].num_threads)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_launcher()  # as local.run's ranks do
    # With certificates a token would be one secret more to hand round; what signs calls is then drawn at the sign-in.
    token = token or (WITHOUT_TOKEN if has_certificates(cfg.tls) else read_token(cfg.rpc.token_file))
    tls = tls_from(cfg.tls, place, token)
    patience = Patience(cfg.rpc.timeout_s, cfg.rpc.retry_s, cfg.rpc.connect_timeout_s)
    if role == "server":
        return _run_server(cfg, place, folder, patience, token, tls, origin)
    if cfg.observe.inputs is True and not place.one_machine:
        raise UserError(
            "observe.inputs=true keeps this client's inputs beside what the server sees: it is for research, with all"
            " ranks on one machine; leave it out, or name a folder of this machine for them: observe.inputs=<folder>"
        )
    if (warning := exchange_from(cfg).warning) and not place.one_machine:
        raise UserError(f"{warning}; it is for research, with all ranks on one machine: use exchange=labels_up")
    return _run_client(cfg, place, folder, patience, token, tls)


@cache
def _end_with_launcher() -> None:
    """From now on this process ends soon after the one that started it, which may have been killed."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_server(
    cfg: DictConfig,
    place: Place,
    folder: Path,
    patience: Patience,
    token: bytes,
    tls: Tls | None,
    origin: dict[str, str] | None,
) -> float:
    device = config.device_from(cfg.server.device, "server.device")
    display = Display()
    if tls is None and not place.one_machine and not is_loopback(place.host):
        display.note("what crosses is not encrypted (tls.enabled=false): keep strangers away (see docs/security.md)")
    if place.is_fleet and "TORCHELASTIC_RUN_ID" in os.environ:
        display.note(transport.left_open(place))
    recorder = Recorder(cfg, folder, display, origin)
    checkpoints = Checkpoints(folder / "checkpoints", cfg.checkpoint.keep)
    server = Server(cfg, device, recorder, checkpoints)
    connected = transport.connect(place, patience, token, server, display.tell, tls)
    with held(folder, display.note), closing(checkpoints), closing(recorder), connected:
        try:
            return server.run()
        except BaseException as error:
            server.inbox.fail(f"the server ended the run: {_in_words(error)}")
            if place.one_machine and (mistake := COMMON.fullmatch(str(error))):
                raise UserError(mistake[1]) from None
            raise


def _run_client(
    cfg: DictConfig, place: Place, folder: Path, patience: Patience, token: bytes, tls: Tls | None
) -> float:
    screen = _screen_of(place)
    with transport.connect(place, patience, token, tell=screen.tell, tls=tls) as server:
        result = _be_client(cfg, place, folder, server, screen)
    first = task_from(cfg).metrics[0]
    screen.tell(f"the run has finished, with a test {first.title} of {first.form(result)}")
    return result


def _screen_of(place: Place) -> Screen:
    """A client's screen: shown where the server's console is another."""
    local, world = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    is_beside_server = place.one_machine or (world and (local == world or os.environ.get("GROUP_RANK") == "0"))
    screen = Screen(f"client {place.rank - 1}" if place.is_fleet and local != "1" else "", not is_beside_server)
    screen.tell(f"splitlearn client {place.rank - 1} of {place.num_clients}")
    return screen


def _be_client(cfg: DictConfig, place: Place, folder: Path, server: ServerProxy, screen: Screen) -> float:
    try:
        device = config.device_from(cfg.client.device, "client.device")
        return Client(cfg, place.rank - 1, device, server, screen, folder).run()
    except (PeerError, Stopped):
        raise
    except KeyboardInterrupt as error:  # at once, whether the server is there or not
        server.last_word(Failed.kind, *Failed(_in_words(error)).body())
        raise
    except BaseException as error:
        try:
            server.call(Failed.kind, *Failed(_in_words(error)).body())
        except PeerError as answer:
            if isinstance(error, UserError):
                error.is_told = answer.is_told
        raise


def _in_words(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return f"crashed with {type(error).__name__}: {error}"
