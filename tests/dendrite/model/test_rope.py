"""Rotary frequencies and the rotation itself, by their definitions."""

from __future__ import annotations

import math

import torch

from dendrite.model.config import RopeConfig
from dendrite.model.rope import Rotation, inverse_frequencies


def test_default_frequencies_are_a_geometric_series() -> None:
    frequencies = inverse_frequencies(RopeConfig(10_000.0), 8)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_linear_scaling_divides_all() -> None:
    plain = inverse_frequencies(RopeConfig(10_000.0), 8)
    assert torch.equal(inverse_frequencies(RopeConfig(10_000.0, "linear", 4.0), 8), plain / 4)


def test_llama3_scaling_leaves_short_wavelengths_and_divides_long_ones() -> None:
    rope = RopeConfig(10_000.0, "llama3", 8.0, 1.0, 4.0, original_max_position=64)
    plain = inverse_frequencies(RopeConfig(10_000.0), 32)
    scaled = inverse_frequencies(rope, 32)
    wavelengths = 2 * math.pi / plain
    short, long = wavelengths < 64 / 4, wavelengths > 64
    assert torch.equal(scaled[short], plain[short])
    torch.testing.assert_close(scaled[long], plain[long] / 8)
    between = ~short & ~long
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()


def test_rotation_turns_each_pair_of_channels_by_its_angle() -> None:
    frequencies = torch.tensor([0.5, 0.1])
    heads = torch.randn(3, 2, 4)
    positions = torch.tensor([0, 7, 3])
    turned = Rotation(positions, frequencies, torch.float32).apply(heads)
    pairs = torch.complex(heads[..., :2], heads[..., 2:])
    angles = positions[:, None] * frequencies
    expected = pairs * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1))
    assert torch.equal(turned[0], heads[0])
