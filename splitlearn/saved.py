"""What a run has left in its folder: the network that it trained, whole or cut, finished or not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from yaml import YAMLError

from splitlearn.checkpoints import Checkpoints
from splitlearn.config import shared
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.exchange.network import Network
from splitlearn.tasks import ClientData, Task, task_from
from splitlearn.tasks.loading import of_server, source
from splitlearn.topologies import topology_from
from splitlearn.topologies.averaging import average_states


@dataclass
class SavedRun:
    """A run's configuration and weights.

    Attributes:
        cfg: its configuration.
        about: what the network has to know of the data.
        clients, server: weights and buffers of the segments, under the names that they have in the uncut network; of
            one client where all have the same.
        step: training steps that they have seen.
        client: of the client that was asked for.
    """

    cfg: DictConfig
    about: dict[str, Any]
    clients: dict[int, dict[str, Tensor]]
    server: dict[str, Tensor]
    step: int
    client: dict[str, Tensor] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The uncut network with these weights, bottlenecks included, on the CPU, in evaluation mode."""
        return self.network().model.eval()

    def network(self) -> Network:
        """The network, cut, with these weights, on the CPU, in evaluation mode."""
        built = network.build(self.cfg, self.about)
        built.client.load_state_dict(self.client)
        built.server.load_state_dict(self.server)
        built.client.eval()
        built.server.eval()
        return built


def load(folder: Path, client: int | None = 0, best: bool = False) -> SavedRun:
    """Loads the run in `folder`: its final weights, or of a run that has not finished those of its last checkpoint.

    Args:
        folder: of the run.
        client: whose segment, where each client has its own (topology.average=never, or a checkpoint within an epoch);
            None: that of the first one that has any.
        best: the weights of the best evaluation, which checkpoint.best keeps.

    Raises:
        UserError: there is no run with such weights in the folder, or no such client in it.
    """
    run = _load(folder, best)
    run.client = _of_client(run.clients, client, folder)
    return run


def test_data(task: Task, cfg: DictConfig, about: dict[str, Any]) -> list[ClientData]:
    """What has the test samples that a run was evaluated with: the server's own, or each client's that are here.

    Raises:
        UserError: they cannot be read, or are not like those that its network was trained on, which `about` says.
    """
    if cfg.evaluate.get("on") == "server":
        found = [of_server(task, cfg)]
    else:
        found = [task.load(cfg, client, cfg.num_clients) for client in range(cfg.num_clients)]
        is_own = found[0].origin and found[0].origin.is_own  # then there are only those that are here
        found = found[: 1 if is_own else None]
    for data in found:
        if reason := task.disagreement(data.about | about, data.about):  # an older run does not say all
            raise UserError(f"{source(cfg.data)} does not fit what the run has learned: {reason}")
    return found


def weights(folder: str) -> dict[str, Tensor]:
    """Weights and buffers of the uncut network that the run in `folder` has trained; its clients' mean within an epoch.

    Raises:
        UserError: there are none, or each client has a network of its own.
    """
    if not str(folder).strip():
        raise UserError("init_from= is blank: name the folder of a run, or leave it out")
    try:
        run = _load(Path(os.path.expanduser(str(folder))))
    except UserError as error:
        raise UserError(f"init_from: {error}") from None
    if len(run.clients) > 1 and topology_from(run.cfg).keeps_own:
        raise UserError(
            f"init_from={folder}: there each client has a network of its own (topology.average=never); start from a run"
            " whose clients share one"
        )
    return average_states(list(run.clients.values())) | run.server


def _load(folder: Path, best: bool = False) -> SavedRun:
    cfg, summary = _config(folder), _summary(folder)
    state = None if summary else Checkpoints(folder / "checkpoints", keep=1).latest()
    if summary or best:
        kept = (summary or (state["recorder"] if state else {})).get("best_weights")
        if best and not kept:
            raise UserError(f"{folder} holds no best weights: a run keeps them with checkpoint.best=true")
        task = task_from(cfg)
        names = *task.default_about(cfg), *task.counted
        about = {name: summary[name] for name in names if name in summary} if summary else state["about"]
        prefix, step = ("best_", kept["step"]) if best else ("", summary["steps"])
        paths = {int(path.stem.rpartition("_")[2]): path for path in folder.glob(f"{prefix}client_segment_*.pt")}
        paths = dict(sorted(paths.items())) or {0: folder / f"{prefix}client_segment.pt"}
        clients = {client: _read(path) for client, path in paths.items()}
        return SavedRun(cfg, about, clients, _read(folder / f"{prefix}server_segment.pt"), step)
    if state is None:
        raise UserError(f"{folder} holds a run without weights: it has neither finished nor a checkpoint")
    states, members, progress = state["clients"]["states"], state["clients"]["members"], state["progress"]
    own = {client: member["state"] for client, member in sorted(members.items()) if member["state"]}
    differ = own and (topology_from(cfg).keeps_own or progress["epoch_step"])  # else all have the average
    clients = {client: one.get("segment", one) for client, one in (own if differ else {0: states[0]}).items()}
    return SavedRun(cfg, state["about"], clients, state["server"]["segment"], progress["step"])


def metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a kind (step, evaluation, epoch; None for all) of the metrics.jsonl of the run in `folder`."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if kind in (None, line["kind"])]


def finished_result(folder: Path, cfg: DictConfig) -> float | None:
    """The result of the run of this configuration in `folder`, None if it has not finished there."""
    if cfg.resume == "never" or not (summary := _summary(folder)):
        return None
    if shared(_config(folder)) != shared(cfg):
        return None
    return summary[f"test_{task_from(cfg).metrics[0].name}"]


def has_finished(folder: Path) -> bool:
    return _summary(folder) is not None


def _config(folder: Path) -> DictConfig:
    path = folder / "config.yaml"
    if not path.exists():
        raise UserError(f"{folder} holds no run: there is no config.yaml")
    try:
        cfg = OmegaConf.load(path)
    except (OSError, UnicodeError, YAMLError):
        cfg = None
    if not cfg or not OmegaConf.is_dict(cfg):
        raise UserError(f"{path} cannot be read, or is not whole: copy the run's folder again")
    return cfg


def _summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in a folder; None if it is not there, or not whole, so that the run has not finished."""
    try:
        return json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _of_client(segments: dict[int, Any], client: int | None, folder: Path) -> Any:
    if len(segments) == 1 or client is None:
        return next(iter(segments.values()))  # of one, all have the same
    if client not in segments:
        raise UserError(f"there is no client {client} in {folder}: choose one of {', '.join(map(str, segments))}")
    return segments[client]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError):
        raise UserError(f"{path} is not there, or not whole: copy the run's folder again") from None
