"""What can be seen to be wrong with a configuration before anything is started: one sentence each, naming the key."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from splitlearn import kinds, rates
from splitlearn.batches import LAST_BATCH
from splitlearn.compressors.identity import Identity
from splitlearn.config import ALIKE, check_is, compressor_from, made_from
from splitlearn.errors import UserError
from splitlearn.exchange import changes, network
from splitlearn.exchange.channels import channels_of
from splitlearn.exchange.exchange import Exchange
from splitlearn.exchange.halves import check_declarations
from splitlearn.exchange.wayback import BACKWARD
from splitlearn.kernels import keeping
from splitlearn.segments.adapters import SIDES
from splitlearn.segments.parts import MIXED
from splitlearn.segments.trainable import try_out
from splitlearn.tasks import Task
from splitlearn.topologies.topology import Topology

MAX_CLIENTS = (1 << 15) - 1  # RPC numbers its workers with 16 bits, and the server is one
BASES = {"exchange": Exchange, "topology": Topology, "task": Task}  # what a class of one's own derives from
CHOICES = {
    "last_batch": LAST_BATCH,
    "precision": ("fp32", *MIXED),
    "cut_precision": (None, "fp32"),
    "channels_last": ("auto", True, False),
    "backward": BACKWARD,
    "delta": (None, *keeping.KINDS),
    "bottleneck_init": ("pca", "orthogonal"),
    "role": (None, "server", "client"),
    "topology.average": ("epoch", "step", "never"),
    "topology.weighting": ("uniform", "samples"),
    "partition.name": ("auto", "iid", "dirichlet", "natural", "none"),
    "nonfinite": ("stop", "skip"),
    "schedule.per": ("epoch", "step"),
    "pipeline_depth": (1, 2),
    "membership.open": (True, False),
    "checkpoint.best": (True, False),
    "lora.sides": SIDES,
    "evaluate.on": ("clients", "server"),
    "tls.enabled": ("auto", True, False),
    "data.skip_unreadable": (True, False),
    "data.keep_in_memory": ("auto", True, False),
    "data.augment": ("none", "crop_flip", "resized_crop"),
}
ABSENT = object()  # what another task or topology does not have is not checked
AT_LEAST_ONE = (
    "batch_size",
    "accumulate",
    "bottleneck_batches",
    "epochs",
    "evaluate.every",
    "log.error_every",
    "data.image_size",
    "data.max_length",
    "checkpoint.keep",
    "membership.quorum",
    "observe.every",
    "exchange.send_every",
    "exchange.auxiliary",
    "exchange.local_epochs",
    "exchange.align_every",
    "exchange.width",
)
AT_LEAST_ONE_OR_NONE = (
    "membership.sample",
    "lora.rank",
    "samples_per_epoch",
    "early_stopping.patience",
    "checkpoint.every_epochs",
    "checkpoint.every_steps",
    "exchange.resend_every",
    "warmup.steps",
    "data.max_train_samples",
    "data.max_test_samples",
    "client.num_threads",
    "server.num_threads",
)
TEXT = ("rpc.host", "tls.server_name")
TEXT_OR_NONE = ("data.test_root", "log.wandb", "log.mlflow", "tls.folder", "tls.cert", "tls.key", "tls.ca")
ABOVE_ZERO_OR_NONE = ("clip_norm", "lora.alpha", "link.up_mbits", "link.down_mbits")
ABOVE_ZERO = (
    "exchange.threshold",
    "exchange.hold_mb",
    "delta_gb",
    "rpc.timeout_s",
    "rpc.retry_s",
    "rpc.connect_timeout_s",
    "membership.step_deadline_s",
    "partition.alpha",
)


def check(cfg: DictConfig) -> None:
    """Raises UserError, naming the key, for what can be seen to be wrong before anything is started."""
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key, default=ABSENT)
        if value is not ABSENT and not any(type(value) is type(one) and value == one for one in choices):
            one_of = ", ".join(map(kinds.shown, choices))
            raise UserError(f"{key}={kinds.shown(value)} is unknown: choose one of {one_of}")
    tabled = {
        "exchange.weight",
        "exchange.penalty",
        "observe.batches",
        "observe.inputs",
        *CHOICES,
        *AT_LEAST_ONE,
        *AT_LEAST_ONE_OR_NONE,
        *ABOVE_ZERO,
        *ABOVE_ZERO_OR_NONE,
    }
    kinds.check(cfg, but={*tabled, "num_clients", "cut", "cut_back", "warmup.epochs", "warmup.from"})
    for keys, low, what in (
        (AT_LEAST_ONE, 1, "a whole number, at least 1"),
        (AT_LEAST_ONE_OR_NONE, 1, "a whole number, at least 1, or null"),
        (("early_stopping.min_delta", "exchange.weight", "exchange.penalty"), 0, "a number, at least 0"),
        (("observe.batches",), 0, "a whole number, at least 0"),
        (ABOVE_ZERO, 1e-9, "a number above 0"),
        (ABOVE_ZERO_OR_NONE, 1e-9, "a number above 0, or null"),
    ):
        for key in keys:
            value = OmegaConf.select(cfg, key, default=ABSENT)
            number = int if "whole" in what else (int, float)
            if value is ABSENT or (value is None and what.endswith("null")):
                continue
            if isinstance(value, bool) or not isinstance(value, number) or not low <= value < math.inf:
                raise UserError(f"{key}={kinds.shown(value)} must be {what}")
            if number is int and value > kinds.LARGEST:
                raise UserError(f"{key}={value} is too large: choose {kinds.LARGEST} at most")
    for key in (*TEXT, *TEXT_OR_NONE):
        value = OmegaConf.select(cfg, key)
        if not (isinstance(value, str) and value.strip()) and not (value is None and key in TEXT_OR_NONE):
            raise UserError(f"{key}={kinds.shown(value)} must be a text{', or null' * (key in TEXT_OR_NONE)}")
    inputs = cfg.observe.inputs
    if not isinstance(inputs, bool) and not (isinstance(inputs, str) and os.sep in inputs):
        raise UserError(f"observe.inputs={kinds.shown(inputs)} must be true, false, or a folder, such as ./inputs")
    port = cfg.rpc.port
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise UserError(f"rpc.port={port} must be a whole number, 0 to 65535")
    frozen = [cfg.freeze] if isinstance(cfg.freeze, str) else cfg.freeze or []
    if not isinstance(frozen, Sequence) or not all(isinstance(path, str) and path for path in frozen):
        raise UserError(
            f"freeze={kinds.shown(cfg.freeze)} must be null, a module's path, or a list of paths, such as"
            " [block1,block2]"
        )
    ends = cfg.lora.targets
    is_list = isinstance(ends, Sequence) and not isinstance(ends, str) and all(isinstance(one, str) for one in ends)
    if ends is not None and not (is_list and ends):
        raise UserError(f"lora.targets={kinds.shown(ends)} must be null, or a list of names, such as [q_proj,v_proj]")
    for key in ("data.test_fraction", "lora.dropout"):
        share = OmegaConf.select(cfg, key, default=0.5)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise UserError(f"{key}={kinds.shown(share)} must be at least 0 and below 1")
    for key, default in {"alpha": None, "dropout": 0, "targets": None, "sides": "both"}.items():
        if cfg.lora.rank is None and cfg.lora[key] != default:
            raise UserError(
                f"lora.{key}={kinds.shown(cfg.lora[key])} has no effect without adapters: add lora.rank=<a number>"
            )
    if inputs is not False and cfg.observe.batches == 0:
        raise UserError(f"observe.inputs={kinds.shown(inputs)} keeps nothing: add observe.batches=<how many>")
    number = cfg.num_clients
    if number is not None and not (type(number) is int and 1 <= number <= MAX_CLIENTS):
        raise UserError(f"num_clients={kinds.shown(number)} must be a whole number, 1 to {MAX_CLIENTS}, or null")
    sample, quorum = cfg.membership.sample, cfg.membership.quorum
    if sample is not None and number is None:
        raise UserError(f"membership.sample={sample} needs num_clients=<how many clients they are drawn from>")
    for name, value in (("quorum", quorum), ("sample", sample or 1)):
        if number is not None and value > number:
            raise UserError(f"membership.{name}={value} is more than num_clients={number}")
    if sample is not None and cfg.membership.open and quorum > sample:
        raise UserError(f"membership.quorum={quorum} is more than membership.sample={sample}: no step would have it")
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
    if cfg.accumulate > 1 and cfg.topology.get("average") == "step":
        raise UserError(
            "accumulate does not go with topology.average=step, which averages the gradients of single batches: use"
            " topology.average=epoch, or a larger batch_size"
        )
    if cfg.evaluate.get("on") == "server" and cfg.topology.get("average") == "never":
        raise UserError(
            "evaluate.on=server does not go with topology.average=never: there is no client segment of all clients that"
            " the server could test; use topology.average=epoch or step, or evaluate.on=clients"
        )
    alike = [key for key in ALIKE if key in cfg] if cfg.features_alike else []
    if own := [key for key in alike if not isinstance(made_from(cfg, key), Identity)]:
        raise UserError(
            f"features_alike=true, which codecs=<name> sets, gives {own[0]} the codec of {ALIKE[own[0]]}: leave"
            f" compressor@{own[0]} out, or set features_alike=false"
        )
    augment = cfg.data.get("augment", "none")
    if cfg.delta and augment != "none" and cfg.data.get("transform") is None:
        raise UserError(
            f"delta={cfg.delta} does not go with data.augment={augment}, which makes another image of a sample each"
            " time: set data.augment=none, or delta=null"
        )
    if cfg.pipeline_depth > 1 and (cfg.topology.get("average") == "step" or cfg.nonfinite == "skip"):
        raise UserError("pipeline_depth=2 works with nonfinite=stop, and not with topology.average=step")
    made = {key: made_from(cfg, key) for key in BASES}
    for key, base in BASES.items():
        check_is(made[key], base, cfg, key)
    exchange = made["exchange"]
    check_declarations(exchange)
    exchange.check(cfg)
    if cfg.delta and cfg.exchange.get("hold_mb"):
        raise UserError(
            f"delta={cfg.delta} does not go with exchange={exchange.name}, whose server trains again on the payloads"
            " that it holds: set delta=null"
        )
    network.bottlenecks(cfg, len(exchange.cuts(cfg)))
    made["task"].check(cfg)
    try_out(cfg)
    rates.check(cfg)
    for key, node in cfg.items():
        if isinstance(node, DictConfig) and str(node.get("_target_")).startswith("splitlearn.compressors."):
            compressor_from(cfg, key)
    channels_of(cfg, exchange)
    changes.check(cfg)
