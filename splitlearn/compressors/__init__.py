"""Tensors in, bytes out. Every module in this folder is imported, so that a new compressor is one new file."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from splitlearn.compressors.base import PRESETS, REGISTRY, Compressor, register  # noqa: E402
from splitlearn.compressors.identity import Identity  # noqa: E402
from splitlearn.compressors.mask import MaskSparsifier  # noqa: E402
from splitlearn.compressors.minifloat import Minifloat  # noqa: E402
from splitlearn.compressors.payload import Payload  # noqa: E402
from splitlearn.compressors.quantile import NormalQuantizer  # noqa: E402
from splitlearn.compressors.quantize import UniformQuantizer  # noqa: E402
from splitlearn.compressors.sparse import RandomTopKSparsifier, TopKSparsifier  # noqa: E402

__all__ = [
    "PRESETS",
    "REGISTRY",
    "Compressor",
    "Identity",
    "MaskSparsifier",
    "Minifloat",
    "NormalQuantizer",
    "Payload",
    "RandomTopKSparsifier",
    "TopKSparsifier",
    "UniformQuantizer",
    "register",
]
