"""How a reward model is loaded, and what it tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class RewardOptions(BaseModel):
    """Settings of a `RewardModel`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    positive: Annotated[int, Field(ge=0)] | None = None
    """None: the model has one label, and a value is the sigmoid of its logit. Else the index of a label of several: a
    value is its softmax probability."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cuda` reserves one of Ray's GPUs."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of weights and KV; None is float32 on the CPU and the checkpoint's own type on CUDA."""
    cache_tokens: Annotated[int, Field(ge=0)] = 65_536
    """Most tokens whose keys and values are kept from one batch to the next."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Most texts that are scored together."""


@dataclass(frozen=True, slots=True)
class RewardStats:
    """Totals of a reward model.

    Of the tokens of all `texts` that were scored, `tokens_computed` were run, in `forwards` batches, and
    `tokens_reused` were found in the cache or shared with another text of the batch. `tokens_cached` are held now.
    """

    texts: int
    forwards: int
    tokens_computed: int
    tokens_reused: int
    tokens_cached: int
