"""How like their originals reconstructed images are."""

from __future__ import annotations

import torch
from torch import Tensor

from splitlearn.privacy.attacks.attack import Scene
from splitlearn.tasks.image_classification.transforms import moments_of


def likeness(reconstructed: Tensor, originals: Tensor, scene: Scene) -> dict[str, float]:
    """Of (N, C, H, W) normalised images PSNR in dB, of the mean squared error over all of them, and the mean SSIM."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    both = pixels(reconstructed, scene), pixels(originals, scene)
    return {
        "psnr": peak_signal_noise_ratio(*both, data_range=1.0).item(),
        "ssim": structural_similarity_index_measure(*both, data_range=1.0).item(),
    }


def mean_image(scene: Scene, like: Tensor) -> Tensor:
    """The guess of who sees nothing of (N, C, H, W) images: the mean of the auxiliary ones."""
    known = torch.cat([inputs for inputs, _ in scene.auxiliary])
    return known.mean(0, keepdim=True).expand_as(like)


def pair(originals: Tensor, reconstructed: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
    """Both, for people to look at."""
    return pixels(originals, scene), pixels(reconstructed, scene)


def pixels(images: Tensor, scene: Scene) -> Tensor:
    """Images as they were before they were normalised, if they were, from 0 to 1."""
    if (moments := moments_of(scene.cfg.data)) is not None:
        mean, std = (torch.tensor(moment).view(1, -1, 1, 1) for moment in moments)
        images = images * std + mean
    return images.clamp(0, 1)
