"""What a training run depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a run depends on; `--smoke` shrinks it."""

    minutes: float = 5.0
    epochs: float = 12.0
    """Most tokens to train on, in times of the text: a small library would be learnt by heart."""
    vocabulary: int = 16_384
    hidden: int = 768
    layers: int = 8
    heads: int = 12
    kv_heads: int = 4
    ffn: int = 2048
    context: int = 1024
    batch: int = 32
    peak_lr: float = 1e-3
    warmup: float = 0.05
    """Share of the training in which the learning rate rises; it then falls to zero."""
    weight_decay: float = 0.1
    held_out: int = 5
    """Percent of the files that are kept out, by a hash of their paths."""
    files: int | None = None
    """Most files to read; None reads all."""
    seed: int = 0


SMOKE = Settings(
    minutes=0.1,
    epochs=100.0,
    vocabulary=320,
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    ffn=128,
    context=64,
    batch=4,
    held_out=20,
    files=12,
)
