"""What report.py calls a run: by what crosses, how often (exchange and topology), and in which codec."""

from inspect import signature
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from script import ROOT

import splitlearn.tasks  # noqa: F401  registers the networks, and the compressors
from splitlearn.config import alike
from splitlearn.exchange.exchange import Exchange, exchange_from

BASE = "labels_up"  # with topology=parallel: what all others are compared with
USUAL = OmegaConf.load(ROOT / "conf" / "config.yaml")
# They bound a run, or say when a result is read, or how it is computed, or what is kept of it for attacks.
NO_RESULT = {"exchange.hold_mb", "evaluate.every", "channels_last", "observe.batches", "observe.every"}


def way_of(cfg: DictConfig) -> str:
    """Exchange, topology and defences, with the options that are not as they come; "" for BASE.

    Such as "local_loss, send_every=4", or "noise clip=20".
    """
    exchange, topology = exchange_from(cfg), cfg.topology.get("name")
    words = [topology] if topology not in (None, "parallel") else []
    if exchange.name != BASE:
        usual = {name: one.default for name, one in signature(get_class(cfg.exchange._target_)).parameters.items()}
        names = [name for name in cfg.exchange if name in usual and f"exchange.{name}" not in NO_RESULT]
        words += [
            exchange.name,
            *(f"{name}={plain(value)}" for name in names if (value := cfg.exchange[name]) != usual[name]),
            *(f"cut_back={value}" for value in [cfg.get("cut_back")] if value not in (None, "last")),
        ]
    return ", ".join([*words, *map(_defence, (cfg.get("defence") or {}).items())])


def _defence(item: tuple[str, DictConfig]) -> str:
    """With the options that are not as they come: "noise clip=20"."""
    name, node = item
    path = ROOT / "conf" / "defence" / f"{name}.yaml"
    usual = OmegaConf.load(path) if path.exists() else {}  # of one's own
    return " ".join([name, *(f"{key}={plain(value)}" for key, value in node.items() if usual.get(key) != value)])


def codec_of(cfg: DictConfig) -> str:
    """The codecs of the channels that the exchange has, of weights, and a bottleneck: "ms", "klt up, linked down"."""
    label = _of_channels(cfg, exchange_from(cfg))
    if (of_weights := choice(cfg.weights) if "weights" in cfg else "none") != "none":
        label += f", weights {of_weights}"
    if cfg.get("bottleneck"):  # another network, which is compared with the unmodified one
        start = "" if cfg.bottleneck_init == USUAL.bottleneck_init else f" {cfg.bottleneck_init}"
        if not start and (batches := cfg.get("bottleneck_batches")) not in (None, USUAL.bottleneck_batches):
            start = f" batches={batches}"
        label += f", bottleneck {cfg.bottleneck}{start}"
    return label


def _of_channels(cfg: DictConfig, exchange: Exchange) -> str:
    chosen = {spec.name: choice(cfg[alike(cfg, spec.config)]) for spec in exchange.channels}
    pairs = [(spec, chosen[spec.name], chosen.get(spec.back, "none")) for spec in exchange.channels if spec.back]
    pairs = pairs or [(spec, chosen[spec.name], "none") for spec in exchange.channels]
    (_, there, back), *others = pairs
    label = there if back == "none" else f"{there} both ways" if there == back else f"{there} up, {back} down"
    if others and label != "none" and all((one, other) == (there, back) for _, one, other in others):
        return f"{label}, at both cuts"
    for spec, one, other in others:
        label += f", {spec.title} {one}" * (one != "none") + f", their gradient {other}" * (other != "none")
    return label


def is_bf16(cfg: DictConfig) -> bool:
    """Whether the smashed data have 16 bits a value before they are encoded."""
    return (cfg.get("cut_precision") or cfg.precision) == "bf16"


def bits_of(run: Any) -> float:
    """A run's measured bits for each value of the smashed data."""
    return (16 if is_bf16(run.cfg) else 32) / run.summary["uplink"]["saving"]


def choice(node: DictConfig) -> str:
    """A compressor as one would choose it on the command line: "ms_best", "qu bits=4"."""
    offered = {
        name.removesuffix(".yaml"): entry.node for name, entry in ConfigStore.instance().repo["compressor"].items()
    }

    def changes(name: str) -> list[str]:
        return [f"{key}={plain(value)}" for key, value in node.items() if offered[name].get(key) != value]

    name = min(offered, key=lambda name: (offered[name]["_target_"] != node["_target_"], len(changes(name))))
    return " ".join([name, *changes(name)])


def plain(value: object) -> str:
    """A number as one would type it, with all its digits: 4, not 4.0."""
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
