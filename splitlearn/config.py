"""The configuration: the compressors on offer, checks that one sentence can answer, what all ranks must share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from splitlearn.batches import LAST_BATCH
from splitlearn.compressors import PRESETS, Compressor
from splitlearn.errors import UserError

# Keys that may differ between the ranks of a run, and change when a run goes on.
DATA_KEYS = ("data.root", "data.download", "data.num_workers", "data.keep_in_memory", "arch.download")
SERVER_KEYS = ("membership.quorum", "membership.step_deadline_s")
OWN_KEYS = ("role", "client", "server", "rpc", "link", "log", "resume", "checkpoint", *SERVER_KEYS, *DATA_KEYS)
MAX_CLIENTS = 32
CHOICES = {
    "precision": ("fp32", "bf16"),
    "cut_precision": (None, "fp32"),
    "last_batch": LAST_BATCH,
    "backward": ("straight_through", "gated"),
    "role": (None, "server", "client"),
    "topology.average": ("epoch", "step", "never"),
    "topology.weighting": ("uniform", "samples"),
    "partition.name": ("iid", "dirichlet"),
    "nonfinite": ("stop", "skip"),
    "pipeline_depth": (1, 2),
    "membership.open": (True, False),
    "data.augment": ("none", "crop_flip", "resized_crop"),
}
ABSENT = object()  # what another task or topology does not have is not checked
AT_LEAST_ONE = (
    "batch_size",
    "epochs",
    "evaluate.every",
    "log.error_every",
    "data.image_size",
    "checkpoint.keep",
    "membership.quorum",
)
AT_LEAST_ONE_OR_NONE = (
    "checkpoint.every_epochs",
    "checkpoint.every_steps",
    "data.max_train_samples",
    "data.max_test_samples",
)
ABOVE_ZERO_OR_NONE = ("link.up_mbits", "link.down_mbits")
ABOVE_ZERO = ("rpc.timeout_s", "rpc.retry_s", "rpc.connect_timeout_s", "membership.step_deadline_s")


def offer_compressors() -> None:
    """Makes every compressor a choice of the config groups `compressor` (uplink) and `compressor@downlink`."""
    for name, (cls, options) in PRESETS.items():
        fields = [
            (field.name, field.type, dataclasses.field(default=options.get(field.name, field.default)))
            for field in dataclasses.fields(cls)
        ]
        node = dataclasses.make_dataclass(
            cls.__name__, [("_target_", str, f"{cls.__module__}.{cls.__qualname__}"), *fields]
        )
        ConfigStore.instance().store(group="compressor", name=name, node=node)


offer_compressors()


def check(cfg: DictConfig) -> None:
    """Raises UserError, naming the key, for what can be seen to be wrong before anything is started."""
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value not in choices and value is not ABSENT:
            raise UserError(f"{key}={value} is unknown: choose one of {', '.join(map(str, choices))}")
    for keys, low, what in (
        (AT_LEAST_ONE, 1, "a whole number, at least 1"),
        (AT_LEAST_ONE_OR_NONE, 1, "a whole number, at least 1, or null"),
        (ABOVE_ZERO, 1e-9, "a number above 0"),
        (ABOVE_ZERO_OR_NONE, 1e-9, "a number above 0, or null"),
    ):
        for key in keys:
            value = OmegaConf.select(cfg, key, default=ABSENT)
            number = int if low == 1 else (int, float)
            if value is ABSENT or (value is None and what.endswith("null")):
                continue
            if isinstance(value, bool) or not isinstance(value, number) or value < low:
                raise UserError(f"{key}={value} must be {what}")
    port = cfg.rpc.port
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise UserError(f"rpc.port={port} must be a whole number, 0 to 65535")
    frozen = [cfg.freeze] if isinstance(cfg.freeze, str) else cfg.freeze or []
    if not isinstance(frozen, Sequence) or not all(isinstance(path, str) and path for path in frozen):
        raise UserError(
            f"freeze={cfg.freeze} must be null, a module's path, or a list of paths, such as [block1,block2]"
        )
    fraction = cfg.data.get("test_fraction", 0.5)
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise UserError(f"data.test_fraction={fraction} must be above 0 and below 1")
    number = cfg.num_clients
    if number is not None and not (isinstance(number, int) and 1 <= number <= MAX_CLIENTS):
        raise UserError(f"num_clients={number} is out of range: choose 1 to {MAX_CLIENTS}")
    if number is not None and cfg.membership.quorum > number:
        raise UserError(f"membership.quorum={cfg.membership.quorum} is more than num_clients={number}")
    if cfg.membership.open and cfg.topology.name == "sequential":
        raise UserError(
            "membership.open=true does not go with topology=sequential: the newest weights would be lost with the"
            " client whose turn it is; use topology=parallel"
        )
    if cfg.membership.open and cfg.topology.get("average") == "step":
        raise UserError(
            "membership.open=true does not go with topology.average=step: a client that misses a step would not have"
            " the others' weights any more; use topology.average=epoch or never"
        )
    if cfg.pipeline_depth > 1 and (cfg.topology.get("average") == "step" or cfg.nonfinite == "skip"):
        raise UserError("pipeline_depth=2 works with nonfinite=stop, and not with topology.average=step")
    for key, node in cfg.items():
        if isinstance(node, DictConfig) and str(node.get("_target_")).startswith("splitlearn.compressors."):
            compressor_from(cfg, key)


def evaluates(cfg: DictConfig, epoch: int) -> bool:
    """Whether an epoch, from 1, ends with an evaluation; the last one does."""
    return epoch % cfg.evaluate.every == 0 or epoch == cfg.epochs


def measures_error(cfg: DictConfig, step: int) -> bool:
    """Whether the compression error is measured in a step, from 1."""
    return (step - 1) % cfg.log.error_every == 0


def compressor_from(cfg: DictConfig, key: str) -> Compressor:
    """The compressor that config group `key` describes."""
    try:
        return instantiate(cfg[key])
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise UserError(f"{key}.{cause}" if isinstance(cause, ValueError) else f"{key}: {cause}") from None


def device_from(name: str, key: str) -> torch.device:
    """The device that cpu, cuda, cuda:N or auto names.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"{key}={name} is unknown: choose cpu, cuda, cuda:N or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{key}={name}: this machine has {torch.cuda.device_count()} CUDA devices; choose cpu or auto")
    return device


def shared(cfg: DictConfig) -> dict[str, object]:
    """All keys that must be equal on every rank, flat: {"compressor.bits": 2, …}."""
    flat: dict[str, object] = {}

    def flatten(prefix: str, node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                flatten(f"{prefix}.{key}" if prefix else key, value)
        else:
            flat[prefix] = node

    flatten("", OmegaConf.to_container(cfg, resolve=True))
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{own}.") for own in OWN_KEYS)}


def differences(one: dict[str, object], other: dict[str, object], *names: str) -> str:
    """Where two configurations, of these names, differ, in words; empty where they do not."""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return ", ".join(f"{key} ({names[0]} {one.get(key)}, {names[1]} {other.get(key)})" for key in keys)
