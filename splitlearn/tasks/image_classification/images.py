"""How an image file is read."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2


class ImageLoader:
    """Loads an image file as a (3, height, width) uint8 tensor; with `keeps` once, and from memory from then on.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, keeps: bool):
        self.keeps, self.kept = keeps, {}

    def __call__(self, path: str) -> Tensor:
        image = self.kept.get(path)
        if image is None:
            try:
                image = v2.functional.pil_to_tensor(datasets.folder.pil_loader(path))
            except Image.DecompressionBombError as error:
                raise OSError(str(error)) from None
            if self.keeps:
                self.kept[path] = image
        return image
