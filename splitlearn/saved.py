"""What a run has left in its folder: the network that it trained, whole or cut, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from splitlearn.checkpoints import Checkpoints
from splitlearn.config import shared
from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.exchange.network import Network
from splitlearn.tasks import task_from
from splitlearn.topologies import topology_from


@dataclass
class SavedRun:
    """A run's configuration and weights.

    Attributes:
        cfg: its configuration.
        about: what the network has to know of the data.
        client, server: weights and buffers of the segments, under the names that they have in the uncut network.
        step: training steps that they have seen.
    """

    cfg: DictConfig
    about: dict[str, Any]
    client: dict[str, Tensor]
    server: dict[str, Tensor]
    step: int

    def model(self) -> nn.Module:
        """The uncut network with these weights, on the CPU, in evaluation mode."""
        model = task_from(self.cfg).network(self.cfg, self.about)
        model.load_state_dict(self.client | self.server)
        return model.eval()

    def network(self) -> Network:
        """The network, cut, with these weights, on the CPU, in evaluation mode."""
        built = network.build(self.cfg, self.about)
        built.client.load_state_dict(self.client)
        built.server.load_state_dict(self.server)
        built.client.eval()
        built.server.eval()
        return built


def load(folder: Path, client: int = 0) -> SavedRun:
    """Loads the run in `folder`: its final weights, or of a run that has not finished those of its last checkpoint.

    Args:
        folder: of the run.
        client: whose segment, where each client has its own (topology.average=never, or a checkpoint within an epoch).

    Raises:
        UserError: there is no run with weights in the folder, or no such client in it.
    """
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds no run: there is no config.yaml")
    cfg = OmegaConf.load(folder / "config.yaml")
    if summary := _summary(folder):
        paths = {int(path.stem.rpartition("_")[2]): path for path in folder.glob("client_segment_*.pt")}
        paths = dict(sorted(paths.items())) or {0: folder / "client_segment.pt"}
        path = _of_client(paths, client, folder)
        about = {name: summary[name] for name in task_from(cfg).default_about(cfg) if name in summary}
        return SavedRun(cfg, about, _read(path), _read(folder / "server_segment.pt"), summary["steps"])
    state = Checkpoints(folder / "checkpoints", keep=1).latest()
    if state is None:
        raise UserError(f"{folder} holds a run without weights: it has neither finished nor a checkpoint")
    states, members, progress = state["clients"]["states"], state["clients"]["members"], state["progress"]
    own = {client: member["state"] for client, member in sorted(members.items()) if member["state"]}
    differ = own and (topology_from(cfg).keeps_own or progress["epoch_step"])  # else all have the average
    segment = _of_client(own if differ else {0: states[0]}, client, folder)
    return SavedRun(cfg, state["about"], segment.get("segment", segment), state["server"]["segment"], progress["step"])


def metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a kind (step, evaluation, epoch; None for all) of the metrics.jsonl of the run in `folder`."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if kind in (None, line["kind"])]


def finished_result(folder: Path, cfg: DictConfig) -> float | None:
    """The result of the run of this configuration in `folder`, None if it has not finished there."""
    if cfg.resume == "never" or not (summary := _summary(folder)):
        return None
    if shared(OmegaConf.load(folder / "config.yaml")) != shared(cfg):
        return None
    return summary[f"test_{task_from(cfg).metrics[0].name}"]


def _summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in a folder; None if it is not there, or not whole, so that the run has not finished."""
    try:
        return json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _of_client(segments: dict[int, Any], client: int, folder: Path) -> Any:
    if len(segments) == 1:
        return next(iter(segments.values()))  # all have the same
    if client not in segments:
        raise UserError(f"there is no client {client} in {folder}: choose one of {', '.join(map(str, segments))}")
    return segments[client]


def _read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)
