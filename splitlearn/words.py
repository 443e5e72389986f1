"""The words of a command line, key=value: paths in them are text, whatever Hydra's grammar would make of them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from splitlearn.errors import UserError

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # where runs write; never one of several values
PATHS = (*FOLDERS, "data.root", "init_from", "rpc.token_file", "secret_file")
WITH_VALUE = re.compile(r"--?[cpie][^=]*")  # flags of Hydra's whose value may be the next word, such as --config-dir
OPTIONAL = re.compile("-i|--i[nfo]*")  # of which it need not be


def quoted(text: str) -> str:
    """Text, quoted so that Hydra and OmegaConf take it for exactly this text."""
    return _quoted(re.sub(r"(\\*)\$\{", r"\1\1\\${", text))  # OmegaConf would look ${…} up


def unquoted(value: str) -> str:
    """The text that Hydra reads in a value that `readable` gave."""
    return str(OverridesParser.create().parse_override(f"x={value}").value())


def readable(words: Iterable[str]) -> list[str]:
    """A command line's words, with paths quoted that Hydra would not read, or take for a number or a list.

    Raises:
        UserError: it cannot read another word; says how to quote it.
    """
    return [_readable(word) for word in words]


def flags_first(words: Iterable[str]) -> list[str]:
    """A command line's words, flags of the program before all options: argparse takes options in one piece alone."""
    flags, options, before = [], [], ""
    for word in words:
        is_value = WITH_VALUE.fullmatch(before) and ("=" not in word or not OPTIONAL.fullmatch(before))
        is_flag = word.startswith("-") or is_value
        (flags if is_flag else options).append(word)
        before = word
    return [*flags, "--", *options] if flags else options


def _readable(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or word.startswith("-"):  # an option of the program
        return word
    is_path = key.lstrip("+") in PATHS
    if is_path and value.startswith("~"):
        word = f"{key}={os.path.expanduser(value)}"
        value = word.partition("=")[2]
    try:
        found = OverridesParser.create().parse_override(word).value()
    except HydraException:
        if is_path:
            return f"{key}={_quoted(value)}"
        raise UserError(
            f"{word} cannot be read: to Hydra, = , ( ) [ ] {{ }} quotes and letters with accents are more than text; to"
            f" mean them as they are, quote the value twice: {shlex.quote(f'{key}={_quoted(value)}')}"
        ) from None
    if is_path and found is not None:
        if (found != value or "${" in value) and os.path.exists(value):
            return f"{key}={quoted(value)}"
        if key in FOLDERS and not isinstance(found, str):
            return f"{key}={_quoted(value)}"
    return word


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
