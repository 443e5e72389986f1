"""How the weights of convolutions lie in memory: channels last is what they are computed fastest in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.segments.forward import call
from splitlearn.segments.tracing import in_short


@torch.no_grad()
def lay_out(model: nn.Module, example: Tensor, lengths: Tensor | None, wish: bool | str, is_mixed: bool) -> None:
    """Puts the channels of a model's 4-D weights last, where that is wanted. Maps then follow by themselves.

    Args:
        model: with its weights, whose values stay.
        example: inputs, (2, …).
        lengths: of the samples, where they differ.
        wish: "auto" is with automatic mixed precision, if the model can be computed like that.
        is_mixed: whether it is computed in that.

    Raises:
        UserError: wish=True, and the model cannot be computed like that.
    """
    wanted = is_mixed if wish == "auto" else wish
    if not wanted or not any(weight.dim() == 4 for weight in model.parameters()):
        return
    was_training = model.training
    model.to(memory_format=torch.channels_last).eval()
    try:
        call(model, example, lengths)
    except Exception as error:  # such as of `view`, which needs values one behind the other
        if wish is True:
            raise UserError(
                f"channels_last=true does not go with this network ({in_short(error)}): set channels_last=false, or"
                " use flatten or reshape for view there"
            ) from None
        model.to(memory_format=torch.contiguous_format)
    model.train(was_training)
