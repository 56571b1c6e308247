"""The oracle of invariant I5: logits by one prefill of a token list, in a storage of its own."""

from __future__ import annotations

import torch

from dendrite.attention.base import ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder

_PAGE = 16


def logits_by_recomputation(
    decoder: Decoder, tokens: list[int], kv_dtype: torch.dtype = torch.float32, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits [T, V] float32 at every position of `tokens`."""
    count, shape = len(tokens), decoder.config
    pages = -(-count // _PAGE)
    storage = KvStorage(shape.num_layers, pages + 1, _PAGE, shape.num_kv_heads, shape.head_dim, kv_dtype, scales=scales)
    batch = ForwardBatch(
        tokens=torch.tensor(tokens),
        positions=torch.arange(count),
        slots=torch.arange(count) + _PAGE,
        query_start=[0, count],
        context=[count],
        page_table=torch.arange(1, pages + 1).unsqueeze(0),
        shared_pages=[],
    )
    with torch.inference_mode():
        return decoder.logits(decoder.forward(batch, TorchAttention(storage)))
