"""What a run has left in its folder: the network that it trained, whole or cut, finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from splitlearn import models
from splitlearn.checkpoints import Checkpoints
from splitlearn.config import shared
from splitlearn.errors import UserError


@dataclass
class SavedRun:
    """A run's configuration and weights.

    Attributes:
        cfg: its configuration.
        num_classes: of its data.
        client, server: weights and buffers of the segments, under the names that they have in the uncut network.
        step: training steps that they have seen.
    """

    cfg: DictConfig
    num_classes: int
    client: dict[str, Tensor]
    server: dict[str, Tensor]
    step: int

    def model(self) -> nn.Module:
        """The uncut network with these weights, on the CPU, in evaluation mode."""
        model = models.build(self.cfg.arch.name, self.num_classes, self.cfg.data.image_size)
        model.load_state_dict(self.client | self.server)
        return model.eval()

    def segments(self) -> tuple[nn.Module, nn.Module]:
        """Client and server segment with these weights, on the CPU, in evaluation mode."""
        client, server, _ = models.build_segments(self.cfg, self.num_classes)
        client.load_state_dict(self.client)
        server.load_state_dict(self.server)
        return client.eval(), server.eval()


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
        paths = sorted(folder.glob("client_segment*.pt"), key=lambda path: (len(path.name), path.name))
        path = _of_client(paths, client, folder)
        return SavedRun(cfg, summary["num_classes"], _read(path), _read(folder / "server_segment.pt"), summary["steps"])
    state = Checkpoints(folder / "checkpoints", keep=1).latest()
    if state is None:
        raise UserError(f"{folder} holds a run without weights: it has neither finished nor a checkpoint")
    clients = state["clients"]
    if isinstance(clients, dict):  # of a run whose clients come and go
        clients = [clients["average"]]
    segment = _of_client(clients, client, folder)
    return SavedRun(
        cfg, state["num_classes"], segment.get("segment", segment), state["server"]["segment"], state["step"]
    )


def finished_top1(folder: Path, cfg: DictConfig) -> float | None:
    """The last top-1 test accuracy of the run of this configuration in `folder`, None if it has not finished there."""
    if cfg.resume == "never" or not (summary := _summary(folder)):
        return None
    if shared(OmegaConf.load(folder / "config.yaml")) != shared(cfg):
        return None
    return summary["test_top1"]


def _summary(folder: Path) -> dict[str, Any] | None:
    """The summary of the run in a folder; None if it is not there, or not whole, so that the run has not finished."""
    try:
        return json.loads((folder / "summary.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _of_client(segments: list[Any], client: int, folder: Path) -> Any:
    if len(segments) == 1:
        return segments[0]  # all have the same
    if not 0 <= client < len(segments):
        raise UserError(f"there is no client {client} in {folder}: choose 0 to {len(segments) - 1}")
    return segments[client]


def _read(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)
