"""Models are told apart by their weights, however these are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dendrite.model.decoder import Decoder
from dendrite.model.fingerprint import fingerprint
from dendrite.model.linear import Linear
from tests.tiny_config import TINY


def test_equal_weights_have_equal_fingerprints() -> None:
    assert fingerprint(Decoder.random(TINY, seed=3)) == fingerprint(Decoder.random(TINY, seed=3))
    assert len(fingerprint(Decoder.random(TINY, seed=3))) == 32


def test_packing_a_weight_does_not_change_it() -> None:
    decoder = Decoder.random(TINY, seed=3)
    layers = [
        replace(
            layer,
            **{name: Linear(getattr(layer, name).dense(), pack=False) for name in ("qkv", "output", "gate_up", "down")},
        )
        for layer in decoder.weights.layers
    ]
    unpacked = Decoder(TINY, replace(decoder.weights, layers=tuple(layers)))
    assert fingerprint(unpacked) == fingerprint(decoder)


@pytest.mark.parametrize("name", ["qkv", "output", "gate_up", "down"])
def test_another_weight_in_one_layer_shows(name: str) -> None:
    decoder = Decoder.random(TINY, seed=3)
    first, *others = decoder.weights.layers
    weight = getattr(first, name).dense() + 1e-3 * torch.randn(getattr(first, name).dense().shape)
    changed = Decoder(TINY, replace(decoder.weights, layers=(replace(first, **{name: Linear(weight)}), *others)))
    assert fingerprint(changed) != fingerprint(decoder)


def test_another_bias_or_norm_of_the_heads_shows() -> None:
    decoder = Decoder.random(replace(TINY, qkv_bias=True, qk_norm=True), seed=3)
    first, *others = decoder.weights.layers
    assert first.qk_norm is not None
    assert first.qkv.bias is not None
    changes = ({"qk_norm": first.qk_norm + 1e-3}, {"qkv": Linear(first.qkv.dense(), first.qkv.bias + 1e-3)})
    prints = {fingerprint(decoder)}
    for change in changes:
        layers = (replace(first, **change), *others)
        prints.add(fingerprint(Decoder(decoder.config, replace(decoder.weights, layers=layers))))
    assert len(prints) == 3


def test_another_type_or_rotation_is_another_model() -> None:
    prints = {
        fingerprint(Decoder.random(TINY, seed=3)),
        fingerprint(Decoder.random(TINY, seed=4)),
        fingerprint(Decoder.random(TINY, dtype=torch.bfloat16, seed=3)),
        fingerprint(Decoder.random(replace(TINY, rope=replace(TINY.rope, theta=20_000.0)), seed=3)),
    }
    assert len(prints) == 4
