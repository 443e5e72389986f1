"""What kind of value a key takes, as its defaults in conf/ say: a whole number, a number, a text, a list, …

How it works: a key that is 32 in conf/ takes whole numbers, one that is 5e-4 numbers, one that is null in one file and
10 in another takes either. Numbers are finite and not negative; config.py knows narrower bounds. A key that is null
everywhere or in no file, such as one of somebody's own data set, takes anything here.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from splitlearn.errors import UserError
from splitlearn.hydras import unreadable

HERE = Path(__file__).parent
CONF = next(path for path in (HERE / "conf", HERE.parent / "conf") if path.is_dir())  # installed, or in a clone
PRESETS = ("codecs", "experiment", "sweep")  # groups whose files set what is described elsewhere
LARGEST = 2**63 - 1  # that torch takes as a seed
SOME_EPOCHS = "10 epochs"
EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")  # a length of a schedule; see rates.py
NAMES = {bool: "true or false", int: "a whole number, at least 0", float: "a number, at least 0", str: "a text"}
ABSENT = object()


def check(cfg: DictConfig, but: Container[str] = ()) -> None:
    """
    Args:
        cfg: the configuration.
        but: keys whose values somebody else looks at.

    Raises:
        UserError: a key is missing, has a value of another kind than its defaults, or is NaN; names it.
    """
    given = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    written = OmegaConf.to_container(cfg, resolve=False)
    for key, found in defaults().items():
        value = _get(given, key)
        if key in but or value is ABSENT or "${" in str(_get(written, key)):  # the key it points to is the one to name
            continue
        if not any(_fits(value, default) for default in found):
            quotes = f", so put it in quotes twice: \"{key}='{value}'\"" * (str in map(type, found) and bool(value))
            raise UserError(f"{key}={shown(value)} must be {' or '.join(_names(found))}{quotes}")
    for key, value in flat(given).items():
        if isinstance(value, float) and math.isnan(value):  # which would differ from itself on a peer
            raise UserError(f"{key}=nan is no number: to mean the text, put it in quotes twice: \"{key}='nan'\"")
    for key in _required(given):
        if _get(given, key) is ABSENT:
            raise UserError(f"{key} is missing: it cannot be left out")


def check_options(cfg: DictConfig, described: dict[str, Any]) -> None:
    """
    Raises:
        UserError: an option has a value of another kind than its default, or is a whole number below 1; names it.
    """
    given = OmegaConf.to_container(cfg, resolve=True)
    for key, default in flat(described).items():
        is_count, value = type(default) is int, _get(given, key)
        if not _fits(value, default, least=int(is_count)):
            what = "a whole number, at least 1" if is_count else _names([default])[0]
            raise UserError(f"{key}={shown(value)} must be {what}")


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def defaults() -> dict[str, list[Any]]:
    """The defaults of every key in the files of conf/, {} of what has keys below it.

    Without those that come from the environment, and keys that are null everywhere. Presets say nothing of kinds: of a
    compressor's options, whose classes describe them, they would let no other kind through.
    """
    found = defaultdict(list)
    for path in [CONF / "config.yaml", *(path for path in CONF.glob("*/*.yaml") if path.parent.name not in PRESETS)]:
        for key, value in options_of(path).items():
            found[key].append(value)
    for key, values in found.items():
        if others := [other[1] for value in values if (other := re.fullmatch(r"\${([\w.]+)}", str(value)))]:
            found[key] = found[others[0]]  # the same as that key, unless it is set
    known = {key: [SOME_EPOCHS if _is_epochs(value) else value for value in values] for key, values in found.items()}
    return {
        key: values
        for key, values in known.items()
        if any(value is not None for value in values) and not any("${" in str(value) for value in values)
    }


@cache
def options_of(path: Path) -> dict[str, Any]:
    """The keys that a file of conf/ has, by their paths in the configuration: below its package, if it names one.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        options = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except (OSError, UnicodeError, YAMLError) as error:
        raise UserError(unreadable(path, error)) from None
    if not isinstance(options, dict):
        raise UserError(f"{path} has to be options, each a line with a key, a colon and a value")
    options = {key: value for key, value in options.items() if key not in ("defaults", "hydra")}
    written = re.search(r"^# @package (\S+)$", text, re.MULTILINE)
    package = written[1] if written else "_global_" if path.parent == CONF else path.parent.name
    for name in reversed(package.split(".")) if package != "_global_" else ():
        options = {name: options}
    return flat(options)


def flat(options: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Options by their dotted paths, {} of what has options below it."""
    found = {}
    for key, value in options.items():
        found[f"{above}{key}"] = {} if isinstance(value, dict) else value
        if isinstance(value, dict):
            found |= flat(value, f"{above}{key}.")
    return found


def _required(given: dict[str, Any]) -> list[str]:
    """Keys that every configuration has: all of config.yaml, its groups, and what all files of a group have."""
    groups = _groups()
    keys = [*options_of(CONF / "config.yaml"), *groups]
    for group, common in groups.items():
        if "_target_" not in given.get(group, ()):  # else a class knows what it needs
            keys += common
    return keys


@cache
def _groups() -> dict[str, list[str]]:
    """The groups that every configuration has a choice of, with the keys that all of their files have."""
    entries = OmegaConf.load(CONF / "config.yaml").defaults
    chosen = [str(key) for entry in entries if OmegaConf.is_dict(entry) for key, value in entry.items() if value]
    groups = {}
    for group in [key.rpartition("@")[2] for key in chosen if not key.startswith("override")]:
        files = [path for path in CONF.glob(f"{group}/*.yaml") if "defaults:" not in path.read_text(encoding="utf-8")]
        groups[group] = sorted(set.intersection(*(set(options_of(path)) for path in files))) if files else []
    return groups


def _get(given: Any, key: str) -> Any:
    """What stands at a path; absent too where something above it has no keys, which is found there."""
    for name in key.split("."):
        if not isinstance(given, dict) or name not in given:
            return ABSENT
        given = given[name]
    return given


def _is_epochs(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(" epochs")


def _fits(value: Any, default: Any, least: float = 0) -> bool:
    if _is_epochs(default):  # a length, also as a number of steps or epochs; which, see rates.py
        return (type(value) is int and 0 < value <= LARGEST) or bool(EPOCHS.fullmatch(str(value).strip()))
    if isinstance(default, list):
        return isinstance(value, list) and bool(value) and all(_fits(item, default[0], -math.inf) for item in value)
    if isinstance(value, bool) or default is None:
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and least <= value < math.inf and value > -math.inf
    if type(default) is int:
        return isinstance(value, int) and least <= value <= LARGEST
    if isinstance(default, str):
        return isinstance(value, str) and bool(value.strip())
    return type(value) is type(default)


def _names(found: list[Any]) -> list[str]:
    """What values a key with these defaults takes, in words."""

    def name(default: Any) -> str:
        if isinstance(default, list):
            kind = "whole numbers" if type(default[0]) is int else "numbers"
            return f"a list of {'lengths' if _is_epochs(default[0]) else kind}"
        if _is_epochs(default):
            return f"a whole number, at least 1, or epochs, such as '{default}'"
        return "null" if default is None else NAMES.get(type(default), "a group of options, as in conf/")

    return sorted(set(map(name, found)), key="null".__eq__)
