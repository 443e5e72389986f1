"""The channels of a run: what crosses, with codecs and defences as its configuration says."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

from splitlearn.config import check_is, compressor_from, made_from
from splitlearn.defences import Defence
from splitlearn.errors import UserError
from splitlearn.exchange.channel import Channel
from splitlearn.exchange.exchange import Exchange
from splitlearn.exchange.network import Network
from splitlearn.exchange.wayback import check_linked
from splitlearn.segments.trainable import trained


def channels_of(cfg: DictConfig, exchange: Exchange) -> dict[str, Channel]:
    """An exchange's channels, by name, with codecs of their own, as the configuration says.

    Raises:
        UserError: a gradient is to come back in a basis that there is not, or changes are to be sent of what crosses
            as it is.
    """
    codecs = {spec.name: compressor_from(cfg, spec.config) for spec in exchange.channels}
    keys = {spec.name: "compressor" + f"@{spec.config}" * (spec.config != "compressor") for spec in exchange.channels}
    gradients, delta = {spec.back for spec in exchange.channels}, cfg.get("delta")
    for spec in exchange.channels:
        try:
            if codecs[spec.name].is_linked and spec.name not in gradients:
                raise ValueError(f"{keys[spec.name]}=linked is for gradients: choose another, such as klt")
            if spec.back:
                check_linked(codecs[spec.name], codecs[spec.back], (keys[spec.name], keys[spec.back]))
            if delta and spec.is_of_samples and codecs[spec.name].is_exact:
                raise ValueError(
                    f"delta={delta} saves nothing with {keys[spec.name]}={codecs[spec.name].name}, which sends all of a"
                    f" tensor: choose another {keys[spec.name]}, or delta=null"
                )
        except ValueError as error:
            raise UserError(str(error)) from None
    options, defences = (cfg.evaluate.compressed, cfg.backward, cfg.seed), _defences(cfg, exchange)
    secret_file = cfg.get("secret_file")
    return {
        spec.name: Channel(
            spec,
            codecs[spec.name],
            *options,
            {name: one for name, one in defences.items() if one.channel == spec.name},
            delta if spec.is_of_samples else None,
            secret_file,
        )
        for spec in exchange.channels
    }


def _defences(cfg: DictConfig, exchange: Exchange) -> dict[str, Defence]:
    names = [spec.name for spec in exchange.channels]
    found = {}
    for name, options in (cfg.get("defence") or {}).items():
        if not isinstance(options, DictConfig):
            raise UserError(
                f"defence.{name}={options} is no defence's, by its name: begin the YAML file of each with the line"
                " # @package defence.<name>"
            )
        found[name] = defence = made_from(cfg, key := f"defence.{name}")
        check_is(defence, Defence, cfg, key)
        defence.key = key
        try:
            defence.check(cfg)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
        if defence.channel not in names:
            raise UserError(
                f"defence.{name}.channel={defence.channel} does not cross in exchange={exchange.name}: choose one of"
                f" {', '.join(names)}"
            )
    return found


def know(channels: dict[str, Channel], network: Network, cfg: DictConfig) -> None:
    """Tells channels what crosses the cuts of a network.

    Raises:
        UserError: a defence does not go with it.
    """
    mixed = cfg.precision == "bf16" and cfg.cut_precision is None
    for channel in channels.values():
        cut = network.cuts[channel.spec.cut]
        before = [part for _, part in network.parts()[: channel.spec.cut + 1]]
        channel.shape = (1, *cut.shape[1:]) if cut.is_ragged else cut.shape
        channel.is_ragged = cut.is_ragged
        channel.kept = cut.channels or (1, 1)
        channel.has_gradient = channel.spec.back is not None and any(map(trained, before))
        for name, defence in channel.defences.items():
            try:
                modules = (pair for part in before for pair in part.named_modules())
                defence.check_segment(modules, cut.shape, cut.is_ragged)
            except ValueError as error:
                raise UserError(f"defence.{name}: {error}") from None
        channel.dtype = torch.bfloat16 if mixed and cut.dtype.is_floating_point else cut.dtype
