"""Networks between images and maps that are no part of the cut one: of who reads, or steers, a client segment."""

from __future__ import annotations

import copy
from math import log2, prod

import torch
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.seeds import derive, torch_drawing_from
from splitlearn.segments.forward import run_of


class Mirror(nn.Module):
    """An encoder of the client segment's layers, a decoder from its maps to images, and a critic that tells maps apart.

    Its parameters are named as those of an auxiliary network, which the uncut network does not have either.

    Args:
        part: the client's first.
        image: (C, H, W), of one sample.
        shape: (C, H, W) or (C,), of one sample's map.
        width: channels of decoder and critic.
        seed: of their first weights.

    Raises:
        UserError: the samples are no images, or the maps are no maps of images.
    """

    def __init__(self, part: nn.Module, image: tuple[int, ...], shape: tuple[int, ...], width: int, seed: int):
        super().__init__()
        if len(image) != 3 or len(shape) not in (1, 3):
            raise UserError("exchange=hijacking is for images, and a cut whose map is (C, H, W) or (C,)")
        with torch_drawing_from(derive(seed, "mirror")):
            encoder, decoder = copy.deepcopy(part), image_decoder(shape, image, width)
            draw_anew(encoder)
            self.auxiliary = nn.ModuleDict({"encoder": encoder, "decoder": decoder, "critic": map_critic(shape, width)})

    def __getitem__(self, name: str) -> nn.Module:
        return self.auxiliary[name]


def image_decoder(shape: tuple[int, ...], image: tuple[int, ...], width: int) -> nn.Sequential:
    """From (C, H, W) maps, or (C,) features, to images, whose size is a power of two times that of the maps."""
    layers: list[nn.Module] = []
    if len(shape) == 1:
        shape = (shape[0], 1, 1)
        layers.append(nn.Unflatten(1, shape))
    layers += [nn.Conv2d(shape[0], width, 3, padding=1), nn.ReLU()]
    for _ in range(round(log2(image[-1] / shape[-1]))):
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Upsample(image[1:]), nn.Conv2d(width, image[0], 1)]
    return nn.Sequential(*layers)


def map_critic(shape: tuple[int, ...], width: int) -> nn.Sequential:
    """From (C, H, W) maps, or (C,) features, to a number for each."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    sizes = [shape[1:]]
    layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1), nn.LeakyReLU(0.2)]
    while min(sizes[-1]) > 4:
        sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
        layers += [nn.Conv2d(width, width, 3, 2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * prod(sizes[-1]), 1))


def draw_anew(part: nn.Module) -> None:
    """Gives a part's layers other first weights, as they draw them by default."""
    absent = {module for one in part.modules() if (run := run_of(one)) for module, _ in run.absent}
    for module in part.modules():
        if hasattr(module, "reset_parameters") and module not in absent:  # whose weights another part has
            module.reset_parameters()


def steepness(critic: nn.Module, x: Tensor) -> Tensor:
    """(N,), the length of the critic's gradient at each of (N, …) maps; can be differentiated."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return slope.flatten(1).norm(dim=1)
