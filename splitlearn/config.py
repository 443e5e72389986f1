"""The configuration: the compressors on offer, what its groups describe, what all ranks must share."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from splitlearn import kinds
from splitlearn.compressors import PRESETS, Compressor
from splitlearn.console import legible
from splitlearn.errors import UserError
from splitlearn.hydras import instantiate
from splitlearn.targets import imported

# Keys that may differ between the ranks of a run, and change when a run goes on.
DATA_KEYS = (
    *("data.root", "data.test_root", "data.tokenizer", "data.download", "data.num_workers", "data.keep_in_memory"),
    "arch.download",
)
SERVER_KEYS = ("membership.quorum", "membership.step_deadline_s", "delta_gb")
OWN_KEYS = (
    "role", "client", "server", "rpc", "secret_file", "tls", "link", "log", "resume", "checkpoint", "observe.inputs",
    *SERVER_KEYS, *DATA_KEYS,
)  # fmt: skip
ALIKE = {"features": "compressor", "feature_gradient": "downlink"}  # whose codecs features_alike gives them


def path_of(cls: type) -> str:
    """A class as `_target_` names it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def offer_compressors() -> None:
    """Makes every compressor a choice of the config groups `compressor` (uplink) and `compressor@downlink`."""
    for name, (cls, options) in PRESETS.items():
        fields = [
            (field.name, field.type, dataclasses.field(default=options.get(field.name, field.default)))
            for field in dataclasses.fields(cls)
        ]
        node = dataclasses.make_dataclass(cls.__name__, [("_target_", str, path_of(cls)), *fields])
        ConfigStore.instance().store(group="compressor", name=name, node=node)


offer_compressors()


def num_in_epoch(cfg: DictConfig) -> int:
    """How many clients train in an epoch, where all are there."""
    return cfg.membership.get("sample") or cfg.num_clients


def num_at_once(cfg: DictConfig) -> int:
    """How many clients send in training at the same time: one, where it hands on what it has learned."""
    return 1 if made_from(cfg, "topology").hands_on else num_in_epoch(cfg)


def evaluates(cfg: DictConfig, epoch: int) -> bool:
    """Whether an epoch, from 1, ends with an evaluation: one that is due, and none before the server has trained."""
    if "exchange" in cfg and epoch <= cfg.exchange.get("local_epochs", 0):
        return False
    return is_due(cfg, epoch)


def is_due(cfg: DictConfig, epoch: int) -> bool:
    """Whether an evaluation is due after an epoch, from 1; after the last one it is."""
    return epoch % cfg.evaluate.every == 0 or epoch == cfg.epochs


def clients_evaluate(cfg: DictConfig, epoch: int) -> bool:
    """Whether an epoch, from 1, ends with an evaluation on the clients' test samples."""
    return evaluates(cfg, epoch) and cfg.evaluate.get("on") != "server"


def measures_error(cfg: DictConfig, step: int) -> bool:
    """Whether the compression error is measured in a step, from 1."""
    return (step - 1) % cfg.log.error_every == 0


def check_goes_with(cfg: DictConfig, what: str, fits: dict[str, tuple], why: str = "", otherwise: str = "") -> None:
    """
    Args:
        cfg: of the run.
        what: it is configured with, in words.
        fits: the values that each of these keys may have then, the one to choose first.
        why: a key with another value does not go with it, in words.
        otherwise: what else to do, in words.

    Raises:
        UserError: a key has another value.
    """
    for key, values in fits.items():
        if (value := OmegaConf.select(cfg, key)) in values:
            continue
        use = f"{key}={values[0] or 'null'}"
        if key == "topology.name" or (key == "topology.average" and value is None):  # no key of it would mend that
            key, value, use = "topology", cfg.topology.get("name"), "topology=parallel"
        raise UserError(f"{what} does not go with {key}={value}{why}: use {use}{otherwise}")


def compressor_from(cfg: DictConfig, key: str) -> Compressor:
    """The compressor that config group `key` describes, or with features_alike the one that it is to be like."""
    return made_from(cfg, alike(cfg, key))


def alike(cfg: DictConfig, key: str) -> str:
    """The config group of the codec that `key` has: another's with features_alike."""
    return ALIKE.get(key, key) if cfg.get("features_alike") else key


def made_from(cfg: DictConfig, key: str, *arguments: Any) -> Any:
    """The object that config group `key` describes, made with these arguments and the group's options.

    Raises:
        UserError: there is no such class, or it does not take these options; or the key is no group of options.
    """
    if not isinstance(node := OmegaConf.select(cfg, key), DictConfig):
        hint = f": compressor@{key}={node} chooses a codec" if node in PRESETS else ""
        raise UserError(f"{key}={kinds.shown(node)} must be a group of options, as in conf/{hint}")
    try:
        return instantiate(node, *arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        if "Error locating target" in str(error):
            imported(node._target_, f"{key}._target_")
            raise
        why = str(cause).split("\n")[0]
        if isinstance(cause, ValueError) and any(why.startswith(f"{name}") for name in node):
            raise UserError(f"{key}.{cause}") from None  # it begins with the option
        if match := re.search(r"abstract methods? (.*)", why):
            missing = ", ".join(re.findall(r"\w+", match[1]))
            raise UserError(
                f"{key}._target_={node._target_} has to have {missing} too (see docs/extending.md)"
            ) from None
        if match := re.search(r"missing \d+ required .*arguments?: (.*)", why):
            missing = " ".join(f"+{key}.{name}=…" for name in re.findall(r"'(\w+)'", match[1]))
            raise UserError(f"{key}._target_={node._target_} has options without a default: add {missing}") from None
        raise UserError(f"{options_of(cfg, key)} does not fit {node._target_}: {why}") from None


def check_is(made: Any, base: type, cfg: DictConfig, key: str) -> None:
    """
    Raises:
        UserError: what was made from config group `key` is of another kind.
    """
    if not isinstance(made, base):
        what = f"{key}._target_={OmegaConf.select(cfg, key)._target_} is no {base.__name__}"
        raise UserError(f"{what}: derive the class from {base.__module__}.{base.__name__}")


def options_of(cfg: DictConfig, key: str) -> str:
    """The options of a config group, as on the command line."""
    options = [
        f"{key}.{name}={kinds.shown(value)}" for name, value in OmegaConf.select(cfg, key).items() if name != "_target_"
    ]
    return ", ".join(options) or key


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


MAX_SHOWN, MAX_KEYS = 200, 50  # letters of a value, and keys, that are shown of two configurations


def differences(one: dict[str, object], other: dict[str, object], *names: str) -> str:
    """Where two configurations, of these names, differ, in words; empty where they do not."""
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    shown = [[legible(str(text), MAX_SHOWN) for text in (key, one.get(key), other.get(key))] for key in keys[:MAX_KEYS]]
    more = [f"{len(keys) - MAX_KEYS} more"] * (len(keys) > MAX_KEYS)
    return ", ".join([*(f"{key} ({names[0]} {first}, {names[1]} {second})" for key, first, second in shown), *more])
