"""How well a model predicts given tokens, and how far its predictions are from another's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dendrite.attention.base import ForwardBatch
from dendrite.config import EngineConfig
from dendrite.engine.device import check_types, make_attention
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.evaluation.windows import Window
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder

_STEP_TOKENS = 2_048
_LOGIT_ROWS = 512
"""Rows whose logits are held at once: of a large vocabulary, a row takes half a megabyte."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A model on scored tokens: how many, and means a token of the natural-log loss and, against another, KL.

    kl is KL(other ‖ this) over the whole vocabulary, in nats; None without another. agreement is the share of tokens
    for which both have the same most likely one.
    """

    tokens: int
    loss: float
    kl: float | None
    agreement: float | None

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss, per token."""
        return math.exp(self.loss)


class Scorer:
    """Runs windows through a decoder over paged KV, as an engine would run them as prompts."""

    def __init__(
        self, decoder: Decoder, config: EngineConfig, kv_scales: Tensor | None = None, longest: int | None = None
    ) -> None:
        """Take a decoder, and make room for its KV.

        Args:
            decoder: the model.
            config: of which the page size and `kv_dtype` count.
            kv_scales: of FP8 keys and values; None is 1.
            longest: tokens of the longest window; None is 2,048, or what the model's context allows.

        Raises:
            ContextOverflow: `longest` is over the model's context.
            InvalidArgument: the decoder or device does not allow what the settings ask for.
        """
        shape = decoder.config
        self._decoder, self._page_size = decoder, config.page_size
        most = shape.max_context + 1  # the last token of a window is not run
        longest = min(_STEP_TOKENS, most) if longest is None else longest
        if longest > most:
            raise ContextOverflow(longest - 1, shape.max_context)
        self._limit = longest
        kv_dtype = check_types(config, decoder)
        # A step holds either windows of a few tokens, or one that is longer.
        pages = -(-max(_STEP_TOKENS, longest) // config.page_size) + 1
        storage = KvStorage.of(shape, pages, config.page_size, kv_dtype, decoder.device, kv_scales)
        self._attention = make_attention(config, storage, shape.num_heads, decoder.dtype)

    @property
    def vocab_size(self) -> int:
        """Tokens that the model knows."""
        return self._decoder.config.vocab_size

    @torch.inference_mode()
    def states(self, windows: Sequence[Window]) -> Tensor:
        """[n, d] final hidden states that predict the scored tokens of `windows`, in order.

        Raises:
            ContextOverflow: a window is longer than there is room for.
            InvalidArgument: a token is not in the vocabulary.
        """
        hidden = self._decoder.forward(self._batch(windows), self._attention)
        index: list[int] = []
        start = 0
        for window in windows:
            index += range(start + window.first - 1, start + len(window.tokens) - 1)
            start += len(window.tokens) - 1
        return hidden.index_select(0, torch.tensor(index, device=hidden.device))

    @torch.inference_mode()
    def logprobs(self, states: Tensor) -> Tensor:
        """[n, V] float32 natural-log probabilities."""
        return self._decoder.logits(states).log_softmax(-1)

    def _batch(self, windows: Sequence[Window]) -> ForwardBatch:
        """Each window as a sequence in pages of its own. The last token of each is only predicted, and not run."""
        size, device = self._page_size, self._decoder.device
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, context, tables = [0], [], []
        page = 1
        for window in windows:
            count = len(window.tokens) - 1
            if len(window.tokens) > self._limit:
                raise ContextOverflow(len(window.tokens), self._limit)
            if not all(0 <= token < self.vocab_size for token in window.tokens):
                raise InvalidArgument("tokens", max(window.tokens), f"must be in 0..{self.vocab_size - 1}")
            tokens += window.tokens[:-1]
            positions += range(count)
            slots += range(page * size, page * size + count)
            starts.append(starts[-1] + count)
            context.append(count)
            tables.append(list(range(page, page + -(-count // size))))
            page += len(tables[-1])
        width = max(map(len, tables))
        return ForwardBatch(
            tokens=torch.tensor(tokens, device=device),
            positions=torch.tensor(positions, device=device),
            slots=torch.tensor(slots, device=device),
            query_start=starts,
            context=context,
            page_table=torch.tensor([table + [0] * (width - len(table)) for table in tables], device=device),
            shared_pages=[],
        )


def evaluate(scorer: Scorer, windows: Sequence[Window], against: Scorer | None = None) -> Perplexity:
    """Score all windows, and compare each prediction with that of `against`.

    Raises:
        InvalidArgument: there are no windows, a token is not in the vocabulary, or the two models have different ones.
        ContextOverflow: a window is longer than a scorer has room for.
    """
    if not windows:
        raise InvalidArgument("windows", [], "at least one")
    if against is not None and against.vocab_size != scorer.vocab_size:
        raise InvalidArgument("against", against.vocab_size, f"must have the same {scorer.vocab_size} tokens")
    loss = divergence = agreed = 0.0
    count = 0
    for group in _steps(windows):
        targets = torch.tensor([token for window in group for token in window.tokens[window.first :]])
        states = scorer.states(group)
        reference = against.states(group) if against is not None else None
        for start in range(0, len(targets), _LOGIT_ROWS):
            rows = slice(start, start + _LOGIT_ROWS)
            found = scorer.logprobs(states[rows])
            loss -= found.gather(1, targets[rows].to(found.device).unsqueeze(1)).double().sum().item()
            if against is not None and reference is not None:
                expected = against.logprobs(reference[rows]).to(found.device)
                divergence += (expected.exp() * (expected - found)).double().sum().item()
                agreed += float((expected.argmax(1) == found.argmax(1)).sum().item())
        count += len(targets)
    compared = against is not None
    return Perplexity(
        count, loss / count, divergence / count if compared else None, agreed / count if compared else None
    )


def _steps(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Windows that run together: as many as fit a step, or one that is longer."""
    group: list[Window] = []
    filled = 0
    for window in windows:
        size = len(window.tokens) + 32  # a part of a page each is lost
        if group and filled + size > _STEP_TOKENS:
            yield group
            group, filled = [], 0
        group.append(window)
        filled += size
    if group:
        yield group
