"""The configuration as launch.py gets it, for programs that start runs themselves: scripts, tests, notebooks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import splitlearn.config
import splitlearn.tasks  # noqa: F401  they register compressors and networks
from splitlearn import kinds
from splitlearn.errors import UserError
from splitlearn.hydras import VERSION_BASE, in_a_file
from splitlearn.kinds import CONF
from splitlearn.words import quoted, readable

KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}  # as omegaconf calls them
MANY = 12  # choices that a sentence lists
NO_NAME = "Config group override must be"  # how Hydra's ValueError begins where a group is null or a number


def compose(*overrides: str) -> DictConfig:
    """The configuration that launch.py would make of these overrides, such as "cut=deep" or "compressor.bits=3".

    Raises:
        TypeError: they are no texts, as where all are given as one list.
        UserError: one cannot be read, there is no such option, or it does not take this value.
    """
    if not all(isinstance(word, str) for word in overrides):
        raise TypeError('compose takes each override by itself: compose("cut=deep", "epochs=2")')
    overrides = readable(overrides)
    try:
        return _compose(overrides)
    except Exception as error:
        if not is_hydras(error):
            raise
        raise UserError(in_words(error, overrides)) from None


def compose_group(group: str, overrides: Sequence[str], own: Path | None = None) -> tuple[str, DictConfig]:
    """The choice of a group that is none of a run's, such as ["attack=inversion", "attack.steps=100"], and its options.

    Args:
        group: a folder of conf/.
        overrides: words of the command line.
        own: a folder with such a folder beside the project's, as of --config-dir.

    Returns:
        The name of what is chosen, and a configuration of this group alone.

    Raises:
        UserError: it is not chosen, there is no such option, or it does not take this value.
    """
    names = [word.partition("=")[2] for word in overrides if word.startswith(f"{group}=")]
    options = [word for word in overrides if not word.startswith(f"{group}=")]
    files = {path.stem: path for place in (own, CONF) if place for path in (place / group).glob("*.yaml")}
    if own and not (own / group).is_dir():
        raise UserError(f"{own} has no folder {group} with options of your own")
    if len(names) != 1 or names[0] not in files:
        raise UserError(f"{group}={names[-1] if names else ''}: choose one of {', '.join(sorted(files))}")
    place, others = files[names[0]].absolute().parents[1], [f"hydra.searchpath=[{quoted(f'file://{CONF}')}]"]
    try:
        with _at(place):
            described = OmegaConf.to_container(hydra.compose(f"{group}/{names[0]}", others))
            if group not in described:
                raise UserError(f"{files[names[0]]} is no file of {group}: its package is another")
            keys = [key for key in kinds.flat(described) if key not in (group, f"{group}._target_")]
            for word in options:
                if (key := word.partition("=")[0]) not in keys:
                    its = _suggestion(key, keys) if keys else f"{group}={names[0]} has no options"
                    raise UserError(f"{key} is unknown: {its}")
            cfg = hydra.compose(f"{group}/{names[0]}", [*others, *options])
    except Exception as error:
        if not is_hydras(error):
            raise
        raise UserError(in_words(error, options)) from None
    kinds.check_options(cfg, described)
    return names[0], cfg


def is_hydras(error: Exception) -> bool:
    """Whether Hydra or omegaconf has found a mistake in a configuration, or in a file of options."""
    is_told = isinstance(error, (HydraException, OmegaConfBaseException)) or str(error).startswith(NO_NAME)
    return is_told or in_a_file(error) is not None


def in_words(error: Exception, overrides: Sequence[str] = ()) -> str:
    """What Hydra or omegaconf has to say of the configuration that these overrides make, in one sentence."""
    if of_file := in_a_file(error):
        return of_file
    cause = error.__cause__ or error
    text, why = " ".join(str(error).split()), str(cause).split("\n")[0]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        extra = "; more come with pip install -e '.[sweep]'" if group in ("hydra/sweeper", "hydra/launcher") else ""
        return f"{group}={name} is unknown: {_suggestion(name, error.options)}{extra}"
    if match := re.match(r"In '(.*)': Could not \w+ '(.*?)'\.? Config search path: (.*)", text):
        places = ", ".join(re.findall(r"path=file://(\S*)", match[3]))
        return f"the defaults of {match[1]}.yaml name {match[2]}, and there is no {match[2]}.yaml in {places}"
    if isinstance(error, MissingConfigException) and "hydra/" in text:
        return f"{text.split(' Config search path')[0]} (pip install -e '.[sweep]' brings Hydra's plugins)"
    if text.startswith(NO_NAME):
        return _unnamed_choice(overrides)
    if text.startswith("Ambiguous value for argument"):
        key, _, value = text.split("'")[1].partition("=")
        return (
            f"{key}={value} is several values: add -m for a sweep over them; a list is {key}=[{value}], and a text is"
            f" quoted twice: \"{key}='{value}'\""
        )
    if isinstance(error, OverrideParseException):
        about = str(error).split("\n")[0].rstrip(".")
        if "=" not in error.override:
            return f"{error.override} is no option: options are key=value or group=option"
        return f"{error.override} cannot be read ({about}): quote its value twice, \"key='value'\""
    if match := re.match(r"Could not override '(\w+@\w+)'\. Did you mean", text):
        return _unchosen_group(match[1])
    if match := re.match(r"Could not override '([^']*)'\.( To append to your config use|$)", text):
        return _unknown_key(match[1], overrides)
    if match := re.match(r"Error merging override (.*)", text):
        kind = re.search(r"could not be converted to (\w+)", why)
        return (
            f"{match[1]} must be {KINDS[kind[1]]}" if kind and kind[1] in KINDS else f"{match[1]} does not fit: {why}"
        )
    if match := re.match(r"In '(\w+)/([^']+)': \w+ raised while composing.* full_key: (\w+)\.", text):
        choice, other = f"{match[1]}={match[2]}", "compressor" if match[3] == "compressor" else f"compressor@{match[3]}"
        return f"{choice} sets options of its own {other}, and does not go with another: leave {choice} out, or {other}"
    if key := getattr(cause, "full_key", None):
        return f"{key} has no value that can be used: {why}"
    return text


def _compose(overrides: Sequence[str]) -> DictConfig:
    with _at(CONF):
        return hydra.compose("config", list(overrides))


@contextmanager
def _at(folder: Path) -> Iterator[None]:
    """Hydra at these configurations, also in a program that has it at its own, which it gets back."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(folder), **VERSION_BASE):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def _unnamed_choice(overrides: Sequence[str]) -> str:
    """Of a group that is given null or a number."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} | {"compressor"}
    for word in overrides:
        key, _, value = word.lstrip("+").partition("=")
        if key.partition("@")[0] in groups and re.match(r"null|true|false|[\d.+-]", value):
            return f"{word} names no choice: leave {key} out, or name one of those that python launch.py --help lists"
    return "a group of options is given something else than the name of a choice"


def _unchosen_group(group: str) -> str:
    """Of one such as compressor@features, which there is where another is chosen alone."""
    files = [path for path in CONF.glob("*/*.yaml") if f"- /{group}: " in path.read_text(encoding="utf-8")]
    chosen = " or ".join(f"{path.parent.name}={path.stem}" for path in files)
    return f"{group} is a choice with {chosen} alone" if chosen else f"{group} is unknown"


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    try:
        cfg = _compose(_others(key, overrides))
    except Exception:  # there are more mistakes than this one
        cfg = _compose([])
    group, _, option = key.partition(".")
    option = option.partition(".")[0]
    chosen = [*map(str, cfg.get(group) or ())]
    if f"{group}/{option}" in _beside_each_other() and option not in chosen:
        choice = f"[{','.join([*chosen, option])}]" if chosen else option
        return f"{key} is an option of {group}={option}, which is not chosen: add {group}={choice}"
    keys = [path for path in _paths(OmegaConf.to_container(cfg, resolve=False)) if not path.endswith("_target_")]
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    above, _, name = key.rpartition(".")
    if OmegaConf.is_dict(node := OmegaConf.select(cfg, above) if above else None):
        if name in cfg:
            return f"{key} is unknown: did you mean {name}?"
        beside = [str(other) for other in node if other != "_target_"]
        known = _suggestion(name, beside, f"{above}.") if beside else f"the {above} that is chosen has no options"
        return f"{key} is unknown: {known}; one that {above} takes beside them is added with +{key}=…"
    return f"{key} is unknown: {_suggestion(key, [*keys, *groups])}; python launch.py --help lists them all"


def _others(key: str, overrides: Sequence[str]) -> list[str]:
    """The words for other keys, with the folder of --config-dir as a search path."""
    found = [word for word in overrides if "=" in word and word.partition("=")[0].lstrip("+~") != key]
    found = [word for word in found if not word.startswith(("-", "hydra")) or word.startswith("hydra.searchpath=")]
    if match := re.search(r"(?:^|\n)(?:--config-dir|-cd)[\n=](.*)", "\n".join(overrides)):
        found.append(f"hydra.searchpath=[{quoted(f'file://{os.path.abspath(match[1])}')}]")
    return found


def _beside_each_other() -> list[str]:
    """Choices of groups that several are chosen of, such as defence/noise, whose options are below their names."""
    files = [(path.parent.name, path.stem, path) for path in CONF.glob("*/*.yaml")]
    return [f"{group}/{name}" for group, name, path in files if f"{group}.{name}" in kinds.options_of(path)]


def _suggestion(name: str, options: Sequence[str], prefix: str = "") -> str:
    near = get_close_matches(name, options, n=3)
    did_you_mean = f"did you mean {' or '.join(prefix + one for one in near)}?" if near else ""
    if len(options) > MANY:
        return did_you_mean or f"choose one of {', '.join([*options[:MANY], '…'])}"
    return f"{did_you_mean} " * bool(near) + f"{'C' if near else 'c'}hoose one of {', '.join(options)}"


def _paths(node: object, above: str = "") -> list[str]:
    """Dotted paths of all keys."""
    if not isinstance(node, dict):
        return []
    return [path for key, value in node.items() for path in (f"{above}{key}", *_paths(value, f"{above}{key}."))]
