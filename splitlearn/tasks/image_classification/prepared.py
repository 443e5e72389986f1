"""A data set whose images go through a pipeline: one sample, or its halves for `tasks/samples.py`."""

from __future__ import annotations

import os
import traceback
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from splitlearn.errors import UserError
from splitlearn.tasks.image_classification.transforms import Pipeline


class Prepared(Dataset):
    """A data set whose images go through a pipeline, with labels of the run's classes.

    Args:
        wrapped: map-style data set of (image, label).
        pipeline: makes a tensor of an image.
        num_classes: of the run.
        numbers: the run's label for each of its own; None: the same.
        name: of `wrapped`, for people; "" where a message needs none.
        draws: whether `wrapped` may give another image each time.

    Attributes:
        sample_nbytes: of what `load` gives, where that is the same each time; None else.
    """

    def __init__(
        self,
        wrapped: Any,
        pipeline: Pipeline,
        num_classes: int,
        numbers: list[int] | None = None,
        name: str = "",
        draws: bool = False,
    ):
        self.wrapped, self.pipeline, self.numbers = wrapped, pipeline, numbers
        self.num_classes, self.name = num_classes, name
        self.sample_nbytes = None if draws or pipeline.draws else pipeline.nbytes
        known = getattr(wrapped, "targets", getattr(wrapped, "labels", None))
        known = None if known is None or len(known) != len(wrapped) else np.asarray(known)
        if known is not None and known.ndim == 1 and known.dtype.kind in "iu":
            self.targets = known if numbers is None else self._numbered(known)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.load(index)
        return self.finish(image.unsqueeze(0)).squeeze(0), label

    def load(self, index: int) -> tuple[Tensor, int]:
        """A sample, as far as each image goes alone: (3, size, size)."""
        what = f"{self.name}: sample {index}" if self.name else f"sample {index}"
        try:
            sample = self.wrapped[index]
        except OSError:  # a file, of which the loader tells
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(last.filename)}:{last.lineno}"
            raise UserError(f"{what} fails in {where} with {type(error).__name__}: {error}") from None
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise UserError(f"{what} is a {type(sample).__name__}, and no pair of image and label")
        image, label = sample
        number = np.asarray(label)
        if number.size != 1 or number.dtype.kind not in "iub":
            raise UserError(f"{what} has the label {label!r:.60}, which is no whole number")
        number, known = int(number.item()), self.num_classes if self.numbers is None else len(self.numbers)
        if not 0 <= number < known:
            raise UserError(f"{what} has the label {number}, but there are {known} classes (data.num_classes)")
        try:
            return self.pipeline.load(image), number if self.numbers is None else self.numbers[number]
        except UserError as error:
            raise UserError(f"{what}: {error}") from None

    def _numbered(self, known: np.ndarray) -> np.ndarray:
        """The run's labels for those that the data set lists of its own."""
        if (wrong := known[(known < 0) | (known >= len(self.numbers))]).size:
            listed = "targets" if hasattr(self.wrapped, "targets") else "labels"
            raise UserError(
                f"{self.name}: {listed} has the label {wrong[0]}, but there are {len(self.numbers)} classes: number"
                " them from 0"
            )
        return np.asarray(self.numbers)[known]

    def finish(self, images: Tensor) -> Tensor:
        """What the network gets of (B, 3, size, size) loaded images."""
        return self.pipeline.finish(images)
