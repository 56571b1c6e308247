"""A decoder over paged KV whose page tables are kept by hand: what the engine does, in a few lines."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.attention.torch_reference import TorchAttention
from dendrite.kv.pages import TailCopy
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder


@dataclass
class Path:
    """The tokens computed so far, and the pages that hold them."""

    tokens: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)


class PagedDecoder:
    """Runs paths through a decoder, any mix of them in one batch."""

    def __init__(self, decoder: Decoder, page_size: int = 8, num_pages: int = 128) -> None:
        config = decoder.config
        self.decoder = decoder
        self.page_size = page_size
        self.storage = KvStorage(
            config.num_layers,
            num_pages,
            page_size,
            config.num_kv_heads,
            config.head_dim,
            decoder.dtype,
            decoder.device,
        )
        # Whatever the model reads without having written it shows up as NaN.
        self.storage.pages.fill_(float("nan"))
        self.attention = TorchAttention(self.storage)
        self._next_page = 1

    def run(
        self, work: Sequence[tuple[Path, Sequence[int]]], shared: Sequence[tuple[int, int, int]] = ()
    ) -> list[Tensor]:
        """Append tokens to each path in one step; the logits [q, V] of each path's new tokens."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for path, new in work:
            first = len(path.tokens)
            path.tokens.extend(new)
            while len(path.pages) * self.page_size < len(path.tokens):
                path.pages.append(self._take_page())
            tokens.extend(new)
            for position in range(first, len(path.tokens)):
                positions.append(position)
                slots.append(path.pages[position // self.page_size] * self.page_size + position % self.page_size)
            starts.append(len(tokens))
        width = max(len(path.pages) for path, _ in work)
        device = self.decoder.device
        batch = ForwardBatch(
            tokens=torch.tensor(tokens, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            query_start=starts,
            context=[len(path.tokens) for path, _ in work],
            page_table=torch.tensor([path.pages + [0] * (width - len(path.pages)) for path, _ in work], device=device),
            shared_pages=list(shared),
        )
        logits = self.decoder.logits(self.decoder.forward(batch, self.attention))
        return list(logits.split([end - start for start, end in itertools.pairwise(starts)]))

    def fork(self, path: Path, length: int) -> Path:
        """A path that shares the full pages below `length` tokens, and has its own copy of the tail."""
        full, filled = divmod(length, self.page_size)
        child = Path(path.tokens[:length], path.pages[:full])
        if filled:
            child.pages.append(self._take_page())
            self.storage.copy_tails([TailCopy(path.pages[full], child.pages[full], filled)])
        return child

    def _take_page(self) -> int:
        self._next_page += 1
        return self._next_page - 1
