"""What a training run depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a run depends on; `--smoke` shrinks it."""

    minutes: float = 5.5
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 704
    batch: int = 1024
    peak_lr: float = 2e-3
    warmup_steps: int = 300
    weight_decay: float = 0.1
    aim: float = 0.34
    """Greedy solve rate on validation problems from which on the learning rate decays to zero."""
    decay: float = 0.25
    """Length of that decay, as a share of the time trained before it."""
    ceiling: float = 0.6
    """Weights with a higher greedy solve rate on validation problems are not kept: search must have something to do."""
    probe_seconds: float = 10.0
    probe_problems: int = 1000
    test_problems: int = 500
    samples: int = 16
    rollout_problems: int = 30_000
    rollouts: int = 8
    rollout_seconds: float = 60.0
    value_hidden: int = 256
    value_seconds: float = 20.0
    value_epochs: int = 30
    sample_batch: int = 8_192
    seed: int = 0


SMOKE = Settings(
    minutes=0.3,
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    ffn=128,
    batch=64,
    warmup_steps=10,
    probe_seconds=10.0,
    probe_problems=8,
    test_problems=10,
    samples=2,
    rollout_problems=60,
    rollouts=2,
    rollout_seconds=20.0,
    value_hidden=32,
    value_seconds=5.0,
    value_epochs=3,
    sample_batch=256,
)
