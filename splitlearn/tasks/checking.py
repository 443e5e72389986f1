"""What tasks check alike."""

from __future__ import annotations

from typing import Any


def check_smoothing(label_smoothing: Any) -> None:
    """
    Raises:
        ValueError: it is no part of a target that can be shared out.
    """
    if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be a number from 0, and below 1")
