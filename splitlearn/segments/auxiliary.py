"""An auxiliary network: what a client puts behind its segment to train it without the server (local loss).

    map (C, H, W) ─► 3×3 convolution ─► ReLU ─► mean over 2×2 places ─► linear ─► classes
    map (T, C) of tokens ─► norm ─► linear ─► GELU ─► linear ─► vocabulary, at each position
    map (T, C) of a text ─► mean over its positions ─► norm ─► linear ─► GELU ─► linear ─► classes
    map (C,) ─► linear ─► ReLU ─► linear ─► classes

It is a part of the client's, averaged, kept in checkpoints and counted on the wire with its segment; the uncut network
does not have it.
"""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from splitlearn.seeds import derive, torch_drawing_from
from splitlearn.segments.forward import valid

PREFIX = "auxiliary."  # of the names of its parameters


class Auxiliary(nn.Module):
    """
    Args:
        shape: of one sample's map.
        outputs: shape of one sample's outputs of the uncut network.
        width: channels between its two layers.
        seed: of its first weights.
    """

    takes_lengths = True

    def __init__(self, shape: tuple[int, ...], outputs: tuple[int, ...], width: int, seed: int):
        super().__init__()
        self.is_pooled = len(shape) == 2 and len(outputs) == 1
        with torch_drawing_from(derive(seed, "auxiliary")):
            self.auxiliary = _layers(shape, outputs, width)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.is_pooled:
            is_there = x.new_ones(x.shape[:2]) if lengths is None else valid(lengths, x.shape[1]).to(x.dtype)
            x = (x * is_there.unsqueeze(-1)).sum(1) / is_there.sum(1, keepdim=True)
        return self.auxiliary(x)


def _layers(shape: tuple[int, ...], outputs: tuple[int, ...], width: int) -> nn.Sequential:
    if len(shape) == 3:
        stride = 2 if min(shape[1:]) >= 8 else 1
        places = tuple(min(2, size) for size in shape[1:])
        first = nn.Conv2d(shape[0], width, 3, stride, padding=1)
        last = nn.Linear(width * prod(places), outputs[-1])
        return nn.Sequential(first, nn.ReLU(), nn.AdaptiveAvgPool2d(places), nn.Flatten(), last)
    pair = nn.Linear(shape[-1], width), nn.Linear(width, outputs[-1])
    if len(shape) == 2:
        return nn.Sequential(nn.LayerNorm(shape[-1]), pair[0], nn.GELU(), pair[1])
    if len(shape) == 1:
        return nn.Sequential(pair[0], nn.ReLU(), pair[1])
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), width), nn.ReLU(), pair[1])


def beside(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another run, with this one's auxiliary network, or without any."""
    weights = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    return weights | {name: value for name, value in own.items() if name.startswith(PREFIX)}
