"""Telling models apart by their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from dendrite.model.decoder import Decoder

_SAMPLES = 4_096


def fingerprint(decoder: Decoder) -> str:
    """32 hex digits, equal for two decoders of the same shape, weights and products, on whatever device.

    Of each tensor some thousand elements are looked at, spread evenly: a model that was trained further differs in
    nearly all of them.
    """
    return digest_of(*_tensors(decoder), label=f"{decoder.config} {decoder.weights.quantize}")


def digest_of(*tensors: Tensor, label: str = "") -> str:
    """32 hex digits of a label and of some thousand elements of each tensor."""
    digest = hashlib.sha256(label.encode())
    for weight in tensors:
        flat = weight.flatten()
        digest.update(flat[:: max(1, flat.numel() // _SAMPLES)].contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _tensors(decoder: Decoder) -> Iterator[Tensor]:
    weights = decoder.weights
    yield weights.embedding
    if weights.embedding_scales is not None:
        yield weights.embedding_scales.values
    for layer in weights.layers:
        yield layer.input_norm
        yield layer.mlp_norm
        if layer.qk_norm is not None:
            yield layer.qk_norm
        for linear in (layer.qkv, layer.output, layer.gate_up, layer.down):
            yield linear.dense()
            if linear.scales is not None:
                yield linear.scales.values
            if linear.bias is not None:
                yield linear.bias
    yield weights.norm
