"""What a search algorithm may ask of an engine: the same few verbs, locally and on a cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from dendrite.config import SamplingParams
from dendrite.errors import DendriteError

NodeRef: TypeAlias = Hashable
"""A node as a backend names it. Opaque to algorithms: hold it, compare it, pass it back."""


TopLogprobs: TypeAlias = tuple[tuple[int, float], ...]
"""The most likely tokens at one position: ids and natural-log probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A child that `expand` generated, or `append` wrote.

    `text` is empty where the model folder has no tokenizer. `logprobs` are the natural-log probabilities of `tokens`
    as sampled, temperature and filters aside (temperature 1); a grammar's mask is not left aside, and where there was
    one `raw_logprobs` are the model's own. `value` is the value head's estimate at the last token, in [0, 1]; None
    where the model has no value head. `finish_reason` is "stop" (a stop text, a stop id, the end-of-sequence token, or
    a grammar that lets nothing follow), "length", "error" where this child alone has failed, as `error` tells, or, for
    what was appended, "given". `pages` counts the KV pages that the node itself owns, and `worker` is the number of the
    model worker that holds it. `top_logprobs` has, for each token, the most likely tokens at its position with their
    log-probabilities, the likeliest first; it is empty unless the settings ask for them.
    """

    node: NodeRef
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    value: float | None
    finish_reason: str
    pages: int = 0
    worker: int = 0
    top_logprobs: tuple[TopLogprobs, ...] = ()
    raw_logprobs: tuple[float, ...] = ()
    error: DendriteError | None = None


@dataclass(frozen=True, slots=True)
class BackendStats:
    """Totals since the backend was made.

    `prefill_tokens` counts prompt tokens run through the model, `recomputed_tokens` those run again because their KV
    had been dropped, `decode_tokens` generated tokens, `cached_tokens` prompt tokens found in the prefix cache, `forks`
    children made, and `pages_held` KV pages that live nodes own now. `shared_ratio` is the share of context tokens,
    summed over all decode steps, that a node read from an ancestor's pages. A page holds the KV of `page_tokens` tokens
    in `page_bytes` bytes; both are 0 where the backend has no pages to tell of.
    """

    prefill_tokens: int
    recomputed_tokens: int
    decode_tokens: int
    cached_tokens: int
    forks: int
    pages_held: int
    shared_ratio: float
    page_tokens: int = 0
    page_bytes: int = 0


class Backend(Protocol):
    """Prefill, expand, append, score, release.

    Concurrent calls join one batch; all may be awaited from one event loop.
    """

    async def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """The token ids of a text: as `prefill` would take it, or without `special` as the middle of one."""
        ...

    async def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> NodeRef:
        """Compute a prompt and return its root. `seed` keys the tree's sampling; None takes the backend's own."""
        ...

    async def expand(self, node: NodeRef, n: int, params: SamplingParams) -> list[Branch]:
        """Fork `node` n times and decode all children, in one message. Cancelling the awaiting task releases them."""
        ...

    async def append(self, node: NodeRef, continuations: Sequence[Sequence[int]]) -> list[Branch]:
        """Fork `node` once for each of the given token sequences, none empty, and write it there instead of decoding.

        Cancelling the awaiting task releases the children.
        """
        ...

    async def score(self, node: NodeRef, tokens: Sequence[int]) -> list[float]:
        """Natural-log probability of each of `tokens` as a continuation of `node`; leaves the tree as it was."""
        ...

    async def value(self, node: NodeRef) -> float | None:
        """The value head's estimate at `node`, None without a value head."""
        ...

    async def release(self, node: NodeRef, *, subtree: bool = False) -> None:
        """Give the node up (and all below it); idempotent."""
        ...

    async def stats(self) -> BackendStats:
        """Totals over the backend's workers."""
        ...


@runtime_checkable
class StreamingBackend(Backend, Protocol):
    """A backend that hands a generation out while it runs."""

    def stream(self, node: NodeRef, params: SamplingParams, every_s: float) -> AsyncGenerator[Branch, None]:
        """Fork `node` once and decode the child, yielding it again and again with the tokens that are new.

        The first come at once, then those of `every_s` seconds at a time. Before the last branch, which may have no
        tokens, `finish_reason` is "length"; `text` is left empty. The child is the caller's to release once it was
        yielded. Closing the iterator ends the generation.
        """
        ...
