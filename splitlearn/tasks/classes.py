"""The classes of a data set: their names, and what the server is told of them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from typing import Any

from omegaconf import ListConfig

from splitlearn.console import legible
from splitlearn.errors import UserError

MAX_CLASSES = 1 << 20  # what a client may make the server build
MAX_NAME = 255  # letters, as of a file
NUM_NAMED = 5  # where there are many


def given_classes(cfg: Any) -> list[str] | None:
    """The names of data.classes; None where there are none.

    Raises:
        UserError: it is no list of different names.
    """
    given = cfg.get("classes")
    if given is None:
        return None
    names = [normal(str(name)) for name in given] if isinstance(given, (list, ListConfig)) else []
    if not names or len(set(names)) != len(names):
        raise UserError(f"data.classes={given} has to be null, or a list of different names, such as [ant,bee]")
    return names


def normal(name: str) -> str:
    """A folder's name as a class's: the same whichever way a file system writes accents."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode(errors="replace"))


def about_of(classes: Iterable[Any]) -> dict[str, Any]:
    """What the server is told of the data: how many classes there are, and their names, in the order of the labels."""
    names = [str(name)[:MAX_NAME] for name in classes]
    return {"num_classes": len(names), "classes": names}


def in_words(names: list[str]) -> str:
    """The first of some names."""
    return legible(", ".join(names[:NUM_NAMED]), NUM_NAMED * MAX_NAME) + ", …" * (len(names) > NUM_NAMED)


def check(about: dict[str, Any]) -> None:
    """Looks at what a client says that its classes are.

    Raises:
        ValueError: it is nothing that `about_of` gives; says what is wrong.
    """
    number, names = about["num_classes"], about["classes"]
    if type(number) is not int or not 1 <= number <= MAX_CLASSES:
        raise ValueError(f"num_classes is not a number from 1 to {MAX_CLASSES}")
    if type(names) is not list or len(names) != number:
        raise ValueError(f"its classes are no list of {number} names")
    if not all(type(name) is str and len(name) <= MAX_NAME for name in names):
        raise ValueError(f"its classes are no names of up to {MAX_NAME} letters")
    if any("\ud800" <= letter <= "\udfff" for name in names for letter in name):  # which no file takes
        raise ValueError("its classes have names with half a letter")


def disagreement(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """How the classes of two clients, by what they say of them, differ, in words; None if they do not."""
    names = one["classes"], other["classes"]
    if names[0] == names[1]:
        return None
    if sorted(names[0]) == sorted(names[1]):
        differ = "the same classes in another order"
    else:
        missing, more = ([name for name in a if name not in set(b)] for a, b in (names, names[::-1]))
        found = [f"lacks {in_words(missing)}"] * bool(missing) + [f"has {in_words(more)}"] * bool(more)
        differ = f"{len(names[1])} classes instead of {len(names[0])}: it {' and '.join(found)}"
    return f"it has {differ}; data.classes=[…] gives one list for all, of which a client may lack some"
