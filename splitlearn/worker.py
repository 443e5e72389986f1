"""One rank of a run from start to end: finds its place, meets the others, plays its role."""

from __future__ import annotations

import os
import re
import threading
import time
from functools import cache
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from splitlearn import config, transport
from splitlearn.checkpoints import Checkpoints
from splitlearn.errors import PeerError, Stopped, UserError
from splitlearn.exchange.messages import Failed
from splitlearn.measure.display import Display
from splitlearn.measure.recorder import Recorder
from splitlearn.roles.client import Client
from splitlearn.roles.server import Server
from splitlearn.segments.trainable import try_out
from splitlearn.transport import Patience, Place, read_token

DEFAULT_NUM_CLIENTS = 2
# Where all ranks have one command line and one disk, what one cannot do is no matter of this client.
COMMON = re.compile(r"client \d+ stopped: (?!crashed with|interrupted)(.*)", re.DOTALL)


def place_from(cfg: DictConfig) -> Place | None:
    """This process's place by torchrun's environment or by `role`; None where it is to start all ranks itself.

    Raises:
        UserError: the number of ranks and num_clients do not fit, or client.index is out of range.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and cfg.role is None:
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
            one_machine=os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"],
        )
    if cfg.role is None:
        return None
    if cfg.num_clients is None:
        raise UserError(f"role={cfg.role} needs num_clients=<how many clients will come>")
    if cfg.role == "server":
        return Place(0, cfg.num_clients, cfg.rpc.host, cfg.rpc.port, is_fleet=False)
    if not 0 <= cfg.client.index < cfg.num_clients:
        raise UserError(f"client.index={cfg.client.index} is out of range: choose 0 to {cfg.num_clients - 1}")
    return Place(1 + cfg.client.index, cfg.num_clients, cfg.rpc.host, cfg.rpc.port, is_fleet=False)


def check(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: what can be seen to be wrong before anything is started; names the key.
    """
    config.check(cfg)
    for key in ("task", "exchange", "topology"):
        config.made_from(cfg, key)
    try_out(cfg)


def run_rank(cfg: DictConfig, place: Place, folder: Path, token: bytes | None = None) -> float:
    """Plays one rank's role; returns the run's result, the first of the task's metrics, on every rank.

    Args:
        cfg: the checked configuration.
        place: this rank's.
        folder: where the server writes.
        token: of this run; None takes the user's (see transport/token.py).

    Raises:
        UserError: something that the user can mend went wrong, here or on another rank.
    """
    cfg = OmegaConf.merge(cfg, {"num_clients": place.num_clients})
    role = "server" if place.rank == 0 else "client"
    if cfg[role].num_threads is not None:
        torch.set_num_threads(cfg[role].num_threads)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_launcher()  # as local.run's ranks do
    token = token or read_token(cfg.rpc.token_file)
    patience = Patience(cfg.rpc.timeout_s, cfg.rpc.retry_s, cfg.rpc.connect_timeout_s)
    if role == "server":
        return _run_server(cfg, place, folder, patience, token)
    return _run_client(cfg, place, patience, token)


@cache
def _end_with_launcher() -> None:
    """From now on this process ends soon after the one that started it, which may have been killed."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_server(cfg: DictConfig, place: Place, folder: Path, patience: Patience, token: bytes) -> float:
    device = config.device_from(cfg.server.device, "server.device")
    display = Display()
    if not place.one_machine and not place.host.startswith("127.") and place.host != "localhost":
        display.note(f"RPC listens on {place.host} without encryption: keep strangers away (see docs/reliability.md)")
    elif place.is_fleet and "TORCHELASTIC_RUN_ID" in os.environ:
        display.note(
            f"torchrun's store listens on every interface of this machine, port {place.port}: keep strangers away (see"
            " docs/reliability.md)"
        )
    recorder = Recorder(cfg, folder, display)
    server = Server(cfg, device, recorder, Checkpoints(folder / "checkpoints", cfg.checkpoint.keep))
    try:
        with transport.connect(place, patience, token, server):
            try:
                return server.run()
            except BaseException as error:
                server.inbox.fail(_in_words(error))
                if place.one_machine and (mistake := COMMON.fullmatch(str(error))):
                    raise UserError(mistake[1]) from None
                raise
    finally:
        recorder.close()


def _run_client(cfg: DictConfig, place: Place, patience: Patience, token: bytes) -> float:
    with transport.connect(place, patience, token) as server:
        try:
            device = config.device_from(cfg.client.device, "client.device")
            return Client(cfg, place.rank - 1, device, server).run()
        except (PeerError, Stopped):
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
        return "interrupted (Ctrl-C)"
    return f"crashed with {type(error).__name__}: {error}"
