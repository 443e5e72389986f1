"""What the methods of a defence have to give: whoever wrote its class is told what to mend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from splitlearn.defences.defence import Defence
from splitlearn.errors import UserError


def check_protected(defence: Defence, method: str, found: Any, x: Tensor) -> Tensor:
    """What `method` of a defence gave instead of `x`; raises UserError if that cannot cross in its place."""
    gave = f"{defence.key}: {type(defence).__name__}.{method} gave"
    if not isinstance(found, Tensor) or found.shape != x.shape or found.dtype != x.dtype:
        raise UserError(f"{gave} {_kind(found)}, where {_kind(x)} is to cross")
    if x.requires_grad and not found.requires_grad and torch.is_grad_enabled():
        raise UserError(f"{gave} a tensor without a gradient: what comes before it is trained through it")
    return found


def check_penalty(defence: Defence, found: Any) -> Tensor | None:
    """What `penalty` of a defence gave; raises UserError if that cannot be added to a loss."""
    if found is None:
        return None
    gave, wants = f"{defence.key}: {type(defence).__name__}.penalty gave", "give None, or a 0-d tensor with a gradient"
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise UserError(f"{gave} {_kind(found)}: {wants}")
    if not found.requires_grad:
        raise UserError(f"{gave} a tensor without a gradient: {wants}")
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__
