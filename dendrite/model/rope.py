"""Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout of the checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dendrite.model.config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each pair of channels: [head_dim / 2] float32, on the CPU.

    `linear` divides all frequencies by the factor (position interpolation, arXiv 2306.15595). `llama3`
    divides those whose wavelength exceeds the pre-training context, leaves the short ones, and interpolates
    between (Llama 3.1).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.kind:
        case "default":
            return frequencies
        case "linear":
            return frequencies / rope.factor
        case "llama3":
            wavelengths = 2 * math.pi / frequencies
            turns = rope.original_max_position / wavelengths
            smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
            smooth = smooth.clamp(0.0, 1.0)
            return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


class Rotation:
    """The rotation of one step's tokens, computed once and applied in every layer."""

    __slots__ = ("_cos", "_half", "_sin")

    def __init__(self, positions: Tensor, frequencies: Tensor, dtype: torch.dtype) -> None:
        """Take the sines and cosines of the angles, in float32, and round them to `dtype`.

        Args:
            positions: [T] int64.
            frequencies: [D / 2] float32, from `inverse_frequencies`.
            dtype: type of the queries and keys.
        """
        angles = positions.unsqueeze(1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        self._half = frequencies.shape[0]
        self._cos = torch.cat((cos, cos), dim=1).to(dtype).unsqueeze(1)
        # The sign belongs to the swapped halves: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin).
        self._sin = torch.cat((-sin, sin), dim=1).to(dtype).unsqueeze(1)

    def apply(self, heads: Tensor) -> Tensor:
        """Rotate [T, H, D] by each token's position."""
        return torch.addcmul(heads * self._cos, heads.roll(self._half, -1), self._sin)
