"""Samples laid over one another, each convolved with a key of its own (C3-SL)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from splitlearn.compressors.base import check_lengths, check_range, register
from splitlearn.compressors.fallback import WithFallback
from splitlearn.compressors.payload import Payload
from splitlearn.kernels.sections import view_as
from splitlearn.kernels.unit import from_unit, to_unit

SMALLEST = 16  # values of a sample that keys are nearly orthogonal in


@register("c3sl")
class Superposition(WithFallback):
    """Sends the sum of R samples in the place of each, after a circular convolution with the random key of its place.

    How it works: sample z_i of a group, flattened to D values, has the key k_i, and S = Σ k_i ⊛ z_i is sent, ⌈B/R⌉·D
    values in all, of the tensor's dtype. Circular correlation k_i ⋆ S is z_i and noise: keys are D normal numbers of
    length 1, so that they are nearly orthogonal to one another and to their own shifts. In the mean over keys z_i
    arrives exactly; with one draw, its relative error is about √R, and it can be well above that where the samples
    have a large mean in common, as after a ReLU. The network has to learn to live with it.

    Its gradient: encoding and decoding are transposes of each other. Under `compressor@downlink=c3sl` with the same
    options, what the client gets is exactly the gradient through the paper's layers, R times smaller too. With any
    other downlink the gradient goes straight through.

    Chosen here: keys come from `key_seed` alone, so that they are never sent; both ends and evaluation have the same.
    The last group of a batch that R does not divide is of fewer samples, and a sample that is alone in it, as any
    tensor of one sample, one dimension or fewer than 16 values a sample, is sent as it is. (The authors' program
    leaves the last samples out.)

    Section: the sums; a last sample that is alone is one of them.

    Args:
        samples: R, that share the place of one, 2 to 64.
        key_seed: of the keys, 0 to 2^32-1; the same at both ends.

    Source: Hsieh, Chuang and Wu, "C3-SL: Circular Convolution-Based Batch-Wise Compression for Communication-Efficient
        Split Learning", MLSP 2022, arXiv:2207.12397.
    """

    codec: ClassVar[int] = 13
    samples: int = 4
    key_seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_range("samples", self.samples, 2, 64)
        check_range("key_seed", self.key_seed, 0, (1 << 32) - 1)
        self._spectra: tuple[tuple, Tensor] | None = None  # of the last length and device: all batches have the same

    def coded_nbytes(self, shape: tuple[int, ...], itemsize: int) -> int | None:
        if len(shape) < 2 or shape[0] < 2 or prod(shape[1:]) < SMALLEST:
            return None
        return itemsize * -(-shape[0] // self.samples) * prod(shape[1:])

    def to_coded(self, x: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
        dtype, x = x.dtype, x.view(len(x), -1)
        values, scale = to_unit(x)
        sums, length = None, x.shape[1]
        for place, spectrum in enumerate(self._keys(min(len(x), self.samples), length, x.device)):
            convolved = torch.fft.rfft(values[place :: self.samples]).mul_(spectrum)
            if sums is None:
                sums = convolved
            else:
                sums[: len(convolved)] += convolved
        sent = from_unit(torch.fft.irfft(sums, n=length), scale, dtype)
        if self._last_is_alone(len(x)):
            sent[-1] = x[-1]
        return [sent], ()

    def from_coded(self, sections: list[Tensor], payload: Payload, params: tuple[int, ...]) -> Tensor:
        num_samples, length = payload.shape[0], payload.shape[1:].numel()
        num_groups = -(-num_samples // self.samples)
        check_lengths(sections, num_groups * length * payload.dtype.itemsize)
        sent = view_as(sections[0], payload.dtype).view(num_groups, length)
        values, scale = to_unit(sent)
        sums = torch.fft.rfft(values)
        out = torch.empty(num_samples, length, dtype=payload.dtype, device=sent.device)
        for place, spectrum in enumerate(self._keys(min(num_samples, self.samples), length, sent.device)):
            rows = out[place :: self.samples]
            rows.copy_(from_unit(torch.fft.irfft(sums[: len(rows)] * spectrum.conj(), n=length), scale, payload.dtype))
        if self._last_is_alone(num_samples):
            out[-1] = sent[-1]
        return out

    def _last_is_alone(self, num_samples: int) -> bool:
        return num_samples % self.samples == 1

    def _keys(self, num: int, length: int, device: torch.device) -> Iterator[Tensor]:
        """The Fourier transforms of the first `num` keys, (length // 2 + 1,) complex128 each."""
        wanted = (self.key_seed, length, str(device))
        if self._spectra is None or self._spectra[0] != wanted or len(self._spectra[1]) < num:
            generator = torch.Generator().manual_seed(self.key_seed)  # on the CPU, for any device
            # One by one: what is drawn together depends on how much it is.
            drawn = [torch.randn(length, generator=generator, dtype=torch.float64) for _ in range(num)]
            keys = torch.stack([key / key.norm() for key in drawn])
            self._spectra = wanted, torch.fft.rfft(keys.to(device))
        return iter(self._spectra[1][:num])
