"""Whether a network takes images of the data's size, and which size it takes: known before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitlearn.errors import UserError
from splitlearn.seeds import torch_drawing_from
from splitlearn.segments.tracing import in_short, mode
from splitlearn.tasks.image_classification.networks import example

LARGEST = 512  # pixels that are tried


def fitted(build: Callable[[int], nn.Module], image_size: int, title: str) -> nn.Module:
    """The network that `build` gives for an image size, if it takes two such images in training and in evaluation.

    Raises:
        UserError: it does not; names the next larger size that it takes, or it gives no scores a class.
    """
    try:
        model = build(image_size)
        if torch.empty(0).is_meta or _failure(build, image_size):
            _try(model, image_size, title)  # again with values, without which some networks do not run
        return model
    except UserError:
        raise
    except Exception as error:
        if torch.empty(0).is_meta:  # it is the trial
            raise
        problem = f"arch {title} cannot take images of 3×{image_size}×{image_size} pixels ({in_short(error)})"
    least = least_size(lambda size: isinstance(_failure(build, size), UserError | None), image_size + 1)
    hint = f"set data.image_size={least}" if least else f"no size up to data.image_size={LARGEST} is right either"
    raise UserError(f"{problem}: {hint}, or choose another arch")


def least_size(works: Callable[[int], bool], first: int) -> int | None:
    """The least size from `first` on that works; those at which patches and strides come out even are tried first."""
    before = first - 1
    for even in (size for size in range(first, LARGEST + 1) if size % 14 == 0 or size % 16 == 0):
        if works(even):
            return next(size for size in range(before + 1, even + 1) if size == even or works(size))
        before = even
    return None


def _failure(build: Callable[[int], nn.Module], image_size: int) -> Exception | None:
    """What goes wrong without values, so that it takes neither time nor memory; a UserError is not of the size."""
    try:
        with torch.device("meta"):
            _try(build(image_size), image_size, "")
    except Exception as error:
        return error
    return None


@torch.no_grad()
def _try(model: nn.Module, image_size: int, title: str) -> None:
    for training in (False, True):
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # a batch norm writes into them
        with mode(model, training), torch_drawing_from(0):
            check_scores(functional_call(model, buffers, (example(image_size),)), title)


def check_scores(outputs: object, title: str, num_classes: int | None = None) -> None:
    """
    Raises:
        UserError: what a network gave is no (B, classes) tensor.
    """
    shape = "×".join(map(str, ("B", *outputs.shape[1:]))) if isinstance(outputs, Tensor) else None
    found = f"a {shape} tensor" if shape else f"a {type(outputs).__name__}"
    if not shape or outputs.dim() != 2 or num_classes not in (None, outputs.shape[1]):
        expected = "classes" if num_classes is None else num_classes
        raise UserError(f"arch {title} gives {found}, where a B×{expected} tensor of scores is needed")
