"""KV out of an engine and into another one, instead of computing it there again."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dendrite.engine.paths import find_tip, logprobs_on_path
from dendrite.engine.requests import Requests
from dendrite.engine.runner import ModelRunner
from dendrite.errors import InvalidArgument, KvNotComputed, NodeReleased
from dendrite.kv.ancestry import pending_ancestors
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from dendrite.kv.path_kv import KvFormat, PathKv, to_numpy, to_torch
from dendrite.model.fingerprint import digest_of, fingerprint


class KvExchange:
    """Packs parts of paths, and fills nodes with what was packed elsewhere. For use between two steps.

    What leaves or enters a GPU goes through host memory.
    """

    def __init__(self, cache: KvCache, requests: Requests, runner: ModelRunner) -> None:
        self._cache, self._requests, self._runner = cache, requests, runner
        self.exported_tokens = self.imported_tokens = 0

    @cached_property
    def format(self) -> KvFormat:
        """Of this engine's KV."""
        decoder, storage = self._runner.decoder, self._runner.storage
        shape = decoder.config
        return KvFormat(
            model=fingerprint(decoder),
            dtype=str(decoder.dtype).removeprefix("torch."),
            kv_dtype=str(storage.pages.dtype).removeprefix("torch."),
            kv_scales="" if storage.scales is None else digest_of(storage.scales),
            layers=shape.num_layers,
            kv_heads=self._runner.kv_heads,
            head_dim=shape.head_dim,
            width=shape.hidden_size,
        )

    def pack(self, node: Node, start: int, end: int) -> PathKv:
        """Copy tokens `start` .. `end` - 1 of a live node's path, with their KV.

        Raises:
            InvalidArgument: there are no such tokens, or the node is another engine's.
            NodeReleased: the node has been released.
            KvNotComputed: some of that KV is not there.
        """
        if node.tree.cache is not self._cache:
            raise InvalidArgument("node", node.id, "a node of this engine")
        if node.released:
            raise NodeReleased(node.tree.id, node.id)
        if not 0 <= start < end <= node.length:
            raise InvalidArgument("start, end", (start, end), f"must be rising, between 0 and {node.length}")
        self._require_computed(node, end)
        with torch.inference_mode():
            kv = to_numpy(self._runner.read_tokens(self._slots(node, start, end)))
            slot = find_tip(node) if end == node.length else -1
            tip = to_numpy(self._runner.tips.read([slot])[0]) if slot >= 0 else None
        self.exported_tokens += end - start
        tokens = np.array(node.path_tokens[start:end], np.int32)
        logprobs = np.array(logprobs_on_path(node, start, end), np.float64)
        return PathKv(self.format, start, tokens, logprobs, kv, tip)

    def check(self, part: PathKv, below: Node | None) -> None:
        """Check that a packed part continues `below` (None: that it is a path's beginning) in this engine.

        Raises:
            KvFormatMismatch, InvalidArgument: it does not.
        """
        self.format.accept(part.format)
        part.check()
        start = below.length if below is not None else 0
        if part.start != start:
            raise InvalidArgument("start", part.start, f"must be {start}, where the part is to go on")

    def fill(self, node: Node, part: PathKv) -> None:
        """Give a new node, whose tokens are the last ones of a checked part, their KV and hidden state.

        Makes room by evicting cached prompts, not at the cost of live nodes.

        Raises:
            OutOfPages: too few pages; nothing was changed.
            KvNotComputed: the KV that the node continues is not all there.
        """
        count = len(node.tokens)
        self._require_computed(node, node.base)
        copy = self._cache.reserve(node, count)
        self._runner.copy_tails([copy] if copy is not None else [])
        if count:
            storage = self._runner.storage
            with torch.inference_mode():
                kv = to_torch(part.kv[:, :, -count:], storage.pages.dtype, storage.pages.device)
                self._runner.write_tokens(self._slots(node, node.base, node.length), kv)
            self._cache.commit(node, count)
        node.logprobs.extend(part.logprobs[max(0, len(part.logprobs) - count) :].tolist())
        if part.tip is not None:
            self._keep_tip(node, part)
        self._requests.filled(node)
        self.imported_tokens += count

    def _keep_tip(self, node: Node, part: PathKv) -> None:
        tips = self._runner.tips
        node.tip = tips.allocate()
        assert part.tip is not None
        with torch.inference_mode():
            tips.write([node.tip], to_torch(part.tip[None], tips.states.dtype, tips.states.device))

    def _require_computed(self, node: Node, end: int) -> None:
        """Check that the KV of the first `end` tokens of a path is written."""
        for pending in pending_ancestors(node):
            raise KvNotComputed(pending.tree.id, pending.id, pending.computed)
        if node.base + node.computed < end:
            raise KvNotComputed(node.tree.id, node.id, node.computed)

    def _slots(self, node: Node, start: int, end: int) -> Tensor:
        """[end - start] int64, on the host: where those tokens of a node's path lie."""
        size = self._cache.page_size
        positions = np.arange(start, end)
        return torch.from_numpy(self._cache.page_table(node)[positions // size] * size + positions % size)
