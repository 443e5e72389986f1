"""How an image file is read: as what a viewer shows, in 8-bit RGB."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

# Listed, and not asked of Pillow, so that a folder holds the same samples on every machine.
EXTENSIONS = (
    *datasets.folder.IMG_EXTENSIONS,
    *(".apng", ".avif", ".dib", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".pbm", ".pcx"),
    *(".pfm", ".pnm", ".psd", ".qoi", ".sgi", ".tga"),
)
SIXTEEN_BITS = ("PNG", "PPM")  # formats that have no more; Pillow up to 11 gives their images as 32-bit integers


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
                with Image.open(path) as file:
                    image = v2.functional.pil_to_tensor(to_rgb(file))
            except (OSError, MemoryError):
                raise
            except Exception as error:  # what Pillow's decoders make of broken bytes has no common class
                raise OSError(f"{type(error).__name__}: {error}") from None
            if self.keeps:
                self.kept[path] = image
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as a viewer shows it, in RGB.

    Of an animation it is the first frame. It is turned as its EXIF data say; 16 bits become 8 by their upper ones, and
    other numbers as `eight_bits` says; transparent parts are over white.
    """
    mode, form = image.mode, image.format
    image.load()
    with suppress(SyntaxError, ValueError, TypeError, struct.error):  # of broken EXIF data, which viewers ignore
        image = ImageOps.exif_transpose(image)
    if mode == "F" or mode.startswith("I"):
        has_sixteen = mode.startswith("I;16") or (mode == "I" and form in SIXTEEN_BITS)
        return Image.fromarray(eight_bits(np.asarray(image), has_sixteen)).convert("RGB")
    if mode == "LAB":
        return ImageCms.applyTransform(image, _from_lab())
    if mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eight_bits(values: np.ndarray, has_sixteen: bool) -> np.ndarray:
    """Grey values of any number type as uint8, of the same shape.

    With `has_sixteen` they are 0 to 65,535. Else floats of 0 to 1 are fractions of white; numbers of 0 to 255 stay; and
    others are spread from the lowest to the highest, as viewers of measurements do.
    """
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    if has_sixteen:
        values = values / 257
    elif is_float and low >= 0 and high <= 1:
        values = values * 255
    elif low < 0 or high > 255:
        values = (values - low) * (255 / (high - low or 1))
    return np.rint(values).clip(0, 255).astype(np.uint8)


@cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
