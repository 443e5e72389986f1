"""Plain values in messages: what a configuration is made of, and what a topology keeps."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from splitlearn.compressors.checking import is_as_sent

MAX_PLAIN, MAX_DEPTH = 1 << 20, 9
PLAIN = (str, int, float, bool, type(None))


def are_kept(values: Any) -> bool:
    """Whether it is a dict of plain values and tensors (see is_plain), by name."""
    return isinstance(values, dict) and all(isinstance(name, str) for name in values) and is_plain(values, True)


def is_plain(value: Any, tensors: bool = False) -> bool:
    """Whether it is a word, a number of up to 64 bits, or lists and dicts of these; with `tensors`, of tensors too.

    In all they may have MAX_PLAIN items and letters, each counted as often as it occurs: a message of a kilobyte can
    hold one list a billion times, for which all that looks into it would take for ever.
    """
    left = MAX_PLAIN

    def is_fine(value: Any, depth: int) -> bool:
        nonlocal left
        left -= 1 + (len(value) if isinstance(value, str) else 0)
        if left < 0:
            return False
        if isinstance(value, (list, dict)) and depth:
            items = value if isinstance(value, list) else [*value.keys(), *value.values()]
            return all(is_fine(item, depth - 1) for item in items)
        if isinstance(value, Tensor):
            return tensors and is_as_sent(value)
        return type(value) in PLAIN and (type(value) is not int or abs(value) < 1 << 63)

    return is_fine(value, MAX_DEPTH)
