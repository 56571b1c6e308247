"""Attention on CUDA by FlashInfer's kernels, for steps that are launched one kernel at a time.

Prefill chunks go to its paged prefill kernel, single-query sequences to its decode kernel on tensor cores. Both read
the storage's pages as they lie. Keys and values are written by slot and not through the page tables, since a sequence
may run only for its hidden state: its slot is then scratch, and its pages must stay as they are.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.errors import InvalidArgument, MissingDependency
from dendrite.kv.storage import KvStorage

_HEAD_SIZES = (64, 128)
_FP8 = torch.float8_e4m3fn
_QUERY_TYPES = (torch.bfloat16, torch.float16)
_WORKSPACE_BYTES = 128 << 20  # what FlashInfer recommends
_QUERY_TILE = 128  # the most rows of (query, head of its group) that one block of its kernels holds

Counts = npt.NDArray[np.int32]


class FlashInferAttention:
    """`Attention` for head sizes 64 and 128, in bfloat16 or float16, with KV of that type or in FP8.

    Neither `begin` nor `forward` waits for the GPU, but `begin` waits until the tables of the step before are there.
    """

    def __init__(
        self,
        storage: KvStorage,
        num_heads: int,
        *,
        backend: Literal["fa2", "fa3"] = "fa2",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Attend over `storage`.

        Args:
            storage: keys and values; all layers have its number of key-value heads and head size.
            num_heads: query heads, a multiple of the key-value heads.
            backend: kernels of prefill chunks, FlashAttention 2 or 3; decoding always takes those of 2. Those of 3 save
                4 % of the prefill of 4,096 tokens on an H100, and of 16,000 tokens 18 % (TinyLlama) or 11 %
                (Llama-3-8B). They are not the default, since they exist for Hopper alone and not for FP8, plan 0.15 ms
                longer, and must be compiled for minutes beside those of 2 when they are first used.
            dtype: type of queries and results; None is the storage's, and bfloat16 where that is FP8.

        Raises:
            InvalidArgument: FlashInfer has no kernel for this.
            MissingDependency: flashinfer is not installed, or torch sees no GPU.
        """
        kv_type = storage.pages.dtype
        if dtype is None:
            dtype = torch.bfloat16 if kv_type == _FP8 else kv_type
        _check(storage, num_heads, backend, dtype)
        flashinfer = _load_flashinfer()
        if storage.pages.device.type != "cuda":
            raise InvalidArgument("storage", storage.pages.device, "must lie on a CUDA device")
        self._storage = storage
        self._page_size = storage.page_size
        self._device = storage.pages.device
        self._layers = tuple(storage.pages)
        self._factors = _factors(storage, num_heads)
        kv_heads, head_dim = storage.pages.shape[-2:]
        self._heads = (num_heads, kv_heads, head_dim, storage.page_size)
        self._types = {"q_data_type": dtype, "kv_data_type": kv_type}
        # Partial results of keys that are split among blocks. Both kernels run on one stream, so they share it.
        workspace = torch.zeros(
            _workspace_bytes(num_heads // kv_heads, head_dim, self._device), dtype=torch.uint8, device=self._device
        )
        self._decode: Any = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "NHD", use_tensor_cores=True, backend="fa2"
        )
        self._prefill: Any = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=backend)
        self._planned = torch.cuda.Event()
        self._singles = 0
        self._write_rows = torch.empty(0, dtype=torch.int64)

    @torch.inference_mode()
    def begin(self, batch: ForwardBatch) -> None:
        """Plan both kernels, from the lengths that the host has: nothing is read back from the GPU."""
        self._write_rows = self._storage.key_rows(batch.slots)
        starts = np.asarray(batch.query_start, dtype=np.int32)
        context = np.asarray(batch.context, dtype=np.int32)
        counts = -(-context // self._page_size)
        bounds = _bounds(counts)
        last = context - (counts - 1) * self._page_size
        pages = self._page_indices(batch.page_table, counts, bounds)
        self._singles = singles = leading_singles(starts)
        # A plan is copied to the GPU from pinned memory that the next one overwrites.
        self._planned.synchronize()
        if singles:
            tables = _tensor(bounds[: singles + 1]), pages[: bounds[singles]], _tensor(last[:singles])
            self._decode.plan(*tables, *self._heads, **self._types)
        if singles < len(context):
            self._prefill.plan(
                _tensor(starts[singles:] - starts[singles]),
                _tensor(bounds[singles:] - bounds[singles]),
                pages[bounds[singles] :],
                _tensor(last[singles:]),
                *self._heads,
                causal=True,
                **self._types,
            )
        self._planned.record()

    @torch.inference_mode()
    def forward(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Attention.forward`."""
        self._storage.write_rows(layer, self._write_rows, key, value)
        cache, singles, factors = self._layers[layer], self._singles, self._factors[layer]
        if factors is not None:
            query = (query * factors[0]).to(query.dtype)
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        if singles:
            self._decode.run(query[:singles], cache, out=result[:singles])
        if singles < query.shape[0]:
            self._prefill.run(query[singles:], cache, out=result[singles:])
        return result if factors is None else result.mul_(factors[1])

    def _page_indices(self, table: Tensor, counts: Counts, bounds: Counts) -> Tensor:
        """The pages of all sequences, one after the other, int32 on the device."""
        rows = np.arange(len(counts), dtype=np.int64) * table.shape[1]
        places = np.repeat(rows - bounds[:-1], counts) + np.arange(bounds[-1])
        index = torch.from_numpy(places).pin_memory().to(self._device, non_blocking=True)
        return table.reshape(-1).index_select(0, index).int()


def _factors(storage: KvStorage, num_heads: int) -> tuple[Tensor | None, ...]:
    """Of each layer [2, Hq, 1]: what queries, for the keys' sake, and results are multiplied by; None where by 1.

    FlashInfer takes one scale a layer, and these are one a head.
    """
    scales = storage.scales
    if scales is None or bool((scales == 1).all()):
        return (None,) * storage.pages.shape[0]
    repeated = scales.repeat_interleave(num_heads // scales.shape[2], 2)
    return tuple(repeated.unsqueeze(-1))


def leading_singles(starts: Counts) -> int:
    """How many sequences at the start of a batch have one query, given the batch's `query_start`.

    A chunk of one token behind longer chunks is not among them, and is planned as the chunk that it is.
    """
    longer = np.flatnonzero(np.diff(starts) != 1)
    return int(longer[0]) if len(longer) else len(starts) - 1


def _bounds(counts: Counts) -> Counts:
    """[n + 1] where each of n runs of that many items begins and the last one ends."""
    bounds = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def _tensor(values: Counts) -> Tensor:
    return torch.from_numpy(values)


def _check(storage: KvStorage, num_heads: int, backend: str, dtype: torch.dtype) -> None:
    kv_heads, head_dim = storage.pages.shape[-2:]
    kv_type = storage.pages.dtype
    if head_dim not in _HEAD_SIZES:
        raise InvalidArgument("head_dim", head_dim, "FlashInfer attention has kernels for 64 and 128")
    if dtype not in _QUERY_TYPES:
        raise InvalidArgument("dtype", dtype, "FlashInfer attention computes in bfloat16 and float16")
    if kv_type not in (dtype, _FP8):
        raise InvalidArgument("storage.dtype", kv_type, f"keys and values must be {dtype}, as queries are, or {_FP8}")
    if num_heads < 1 or num_heads % kv_heads:
        raise InvalidArgument("num_heads", num_heads, f"must be a multiple of the {kv_heads} key-value heads")
    if backend not in ("fa2", "fa3"):
        raise InvalidArgument("backend", backend, "must be fa2 or fa3")
    if backend == "fa3" and kv_type == _FP8:
        raise InvalidArgument("backend", backend, "must be fa2 with FP8 keys and values")


def _load_flashinfer() -> Any:
    remedy = "install it on a machine with an NVIDIA GPU: pip install 'dendrite[gpu]'"
    if not torch.cuda.is_available():
        raise MissingDependency("CUDA", "FlashInfer attention runs on a GPU, and torch sees none", remedy)
    try:
        return importlib.import_module("flashinfer")
    except ImportError as error:
        raise MissingDependency("flashinfer", f"attention on CUDA needs it ({error})", remedy) from error


def _workspace_bytes(group: int, head_dim: int, device: torch.device) -> int:
    """Bytes for the partial results of a prefill whose keys are split.

    FlashInfer splits into at most two blocks a multiprocessor over all key-value heads, and keeps for each block, for
    each query head of a group, a tile of float32 results and their log-sum-exp (PrefillPlan in its scheduler.cuh).
    """
    blocks = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(_WORKSPACE_BYTES, blocks * group * _QUERY_TILE * (head_dim + 1) * 4 + 4096)
