"""The networks of a language model, and where they are cut."""

from __future__ import annotations

import os
from operator import attrgetter

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.hydras import instantiate
from splitlearn.segments import valid_cuts
from splitlearn.segments.tracing import in_short
from splitlearn.targets import imported
from splitlearn.tasks.task import NAMED_CUTS

BEFORE_BLOCKS = "embedding"


def build(arch: DictConfig, vocab_size: int, context: int, num_classes: int | None = None) -> nn.Module:
    """The freshly initialised network that the config group `arch` describes: (B, T) int64 to (B, T, V) scores.

    With num_classes, to (B, classes) scores.

    Raises:
        UserError: it is none of tokens, or does not take its options.
    """
    wanted = {"vocab_size": vocab_size, "context": context}
    needs = "task=causal_lm needs a network of tokens, such as arch=gpt"
    if num_classes is not None:
        wanted["num_classes"] = num_classes
        needs = "task=sequence_classification needs one that tells texts apart, such as arch=encoder or arch=hf"
    options = {key: value for key, value in OmegaConf.to_container(arch, resolve=True).items() if key != "name"}
    if not options.get("_target_") or "cuts" in options:
        raise UserError(f"arch={arch.name} takes images: {needs}")
    imported(options["_target_"], "arch._target_")
    try:
        return instantiate({"_convert_": "all", **options, **wanted})
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ValueError):
            raise UserError(f"arch.{in_short(cause).removeprefix('ValueError: ')}") from None  # begins with the option
        if isinstance(cause, TypeError) and "'num_classes'" in str(cause):
            gives = "no classes" if num_classes is not None else "classes"
            raise UserError(f"arch={arch.name} gives {gives}: {needs}") from None
        if isinstance(cause, TypeError):
            raise UserError(f"arch={arch.name} does not take these options: {in_short(cause)}") from None
        raise cause from None


def example_of(context: int) -> Tensor:
    """(2, context) int64 tokens to trace a network with, of any vocabulary."""
    places = torch.arange(context)
    return torch.stack([places % 2, places // 2 % 2])


def headline(cfg: DictConfig) -> tuple[str, str]:
    """What people call the network and the data."""
    arch = cfg.arch.get("model") or cfg.arch.get("config") or cfg.arch.name
    return os.path.basename(arch.rstrip("/")), cfg.data.name


def cut_path(cut: str, model: nn.Module, example: Tensor, lengths: Tensor | None = None) -> str:
    """The path of the module that a cut stands for: a number of blocks, shallow, medium, deep, or a path already.

    Raises:
        UserError: there are not so many blocks.
    """
    path = getattr(model, "blocks_path", None)
    if path is None:
        points = valid_cuts(model, example, lengths) if cut in NAMED_CUTS else ()
        return points[int(NAMED_CUTS[cut] * len(points))].path if points else cut
    depth = len(attrgetter(path)(model))
    number = int(NAMED_CUTS[cut] * depth) if cut in NAMED_CUTS else int(cut) if cut.isdecimal() else None
    if number is None:
        return cut
    if number > depth:
        raise UserError(f"cut={cut} is after block {cut}, and there are {depth} blocks; 0 is before the first")
    return f"{path}.{number - 1}" if number else getattr(model, "before_blocks", BEFORE_BLOCKS)


def last_cut(model: nn.Module) -> str | None:
    """Where a network goes back to the client: after its last block; None: after its last module that can be cut."""
    path = getattr(model, "blocks_path", None)
    return None if path is None else f"{path}.{len(attrgetter(path)(model)) - 1}"
