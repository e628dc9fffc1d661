"""Ranges that training learns: per tap, an EMA of max|x| of every channel, bias-corrected."""

import numpy as np
import torch
from torch import nn

from intformer.errors import IntformerError
from intformer.frontend.trained import FACTOR, PEAK

DECAY = 0.99


class Ranges(nn.Module):
    """Buffers of every tap, and the channel factors of every operand.

    peaks    tap -> sum [C] of d^(age) (1 - d) max|x|
    seen     tap -> sum of the same weights, which a peak is divided by: 1 from calibration on,
             below it where training starts without (Adam's correction)
    factors  weight stem -> [K], fixed
    tensors  tap -> how many tensors its channels are; each has one range, the EMA of its max|x|, as
             in Q8BERT. None: every channel has its own
    """

    def __init__(
        self,
        sizes: dict[str, int],
        factors: dict[str, np.ndarray],
        decay: float = DECAY,
        tensors: dict[str, int] | None = None,
    ):
        """Start with nothing seen."""
        super().__init__()
        self.decay, self.tensors = decay, tensors
        for tap, size in sizes.items():
            self.register_buffer(key(PEAK + tap), torch.zeros(size))
            self.register_buffer(key("seen." + tap), torch.zeros(()))
        for stem, f in factors.items():
            self.register_buffer(key(FACTOR + stem), torch.from_numpy(f.astype(np.float32)))
        self.taps, self.stems = tuple(sizes), tuple(factors)

    def start(self, peaks: dict[str, np.ndarray], factors: dict[str, np.ndarray]) -> None:
        """Take calibrated peaks and factors."""
        for tap, found in peaks.items():
            peak = self.shared(tap, torch.from_numpy(np.float32(found)))
            self.get_buffer(key(PEAK + tap)).copy_(peak)
            self.get_buffer(key("seen." + tap)).fill_(1)
        for stem, f in factors.items():
            self.factor(stem).copy_(torch.from_numpy(np.float32(f)))

    def shared(self, tap: str, peaks: torch.Tensor) -> torch.Tensor:
        """Return peaks [..., C]; the channels of a tensor that has one range get the largest."""
        if self.tensors is None:
            return peaks
        parts = peaks.unflatten(-1, (self.tensors[tap], -1))
        return parts.amax(-1, keepdim=True).expand_as(parts).flatten(-2)

    def factor(self, stem: str) -> torch.Tensor:
        """Channel factors of an operand, float32 [K]."""
        return self.get_buffer(key(FACTOR + stem))

    def peak(self, tap: str) -> torch.Tensor:
        """Return the corrected EMA, [C]."""
        weight = self.get_buffer(key("seen." + tap))
        return self.get_buffer(key(PEAK + tap)) / weight.clamp(min=1e-30)

    @torch.no_grad()
    def observe(self, tap: str, x: torch.Tensor) -> None:
        """Take a batch into the average; x [rows, C]."""
        found = largest(x.detach(), 0)
        # a batch with NaN or infinity in it must not end the run's ranges for good
        found = self.shared(tap, torch.where(found.isfinite(), found, self.peak(tap)))
        one = torch.ones((), device=found.device)
        self.get_buffer(key(PEAK + tap)).lerp_(found, 1 - self.decay)
        self.get_buffer(key("seen." + tap)).lerp_(one, 1 - self.decay)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return peaks and factors as frontend.trained keeps them, float32."""
        missing = [t for t in self.taps if not float(self.get_buffer(key("seen." + t)))]
        if missing:
            raise IntformerError(
                f"no range yet at {missing[0]} ({len(missing)} in all)",
                hint="pass calibrate= to prepare, or train first",
            )
        peaks = {PEAK + tap: self.peak(tap) for tap in self.taps}
        factors = {FACTOR + stem: self.factor(stem) for stem in self.stems}
        return {name: t.detach().cpu().numpy().copy() for name, t in (peaks | factors).items()}


def largest(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Return max|x| along a dimension, in the fewest passes over x."""
    return torch.maximum(x.amax(dim), -x.amin(dim))


def key(name: str) -> str:
    """Return a buffer's name: torch allows no dot in one."""
    return name.replace(".", "_")
