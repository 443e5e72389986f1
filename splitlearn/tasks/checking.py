"""What tasks check alike: an option, and a tensor that arrived."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_as_sent(tensor: Tensor) -> bool:
    """Whether a tensor that arrived is plain: dense, on the CPU, and without a gradient."""
    return tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.requires_grad


def check_smoothing(label_smoothing: Any) -> None:
    """
    Raises:
        ValueError: it is no part of a target that can be shared out.
    """
    if not isinstance(label_smoothing, (int, float)) or not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be a number from 0, and below 1")
