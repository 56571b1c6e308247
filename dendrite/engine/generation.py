"""What the engine has been asked to do: extend a node by sampling, or compute given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from dendrite.config import SamplingParams
from dendrite.engine.paths import generated_on_path
from dendrite.engine.sampler import has_penalty
from dendrite.engine.stopping import StopText
from dendrite.engine.without import Without
from dendrite.errors import DendriteError, GrammarError
from dendrite.kv.node import Node
from dendrite.search.backend import TopLogprobs

if TYPE_CHECKING:
    from dendrite.grammar.matcher import Matcher

STOP_TEXT_PACE = 4
"""A stop text is noticed by the host only, and what was generated past it is thrown away."""
STREAM_PACE = 8
"""Tokens that somebody watches come in small portions."""
FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


@dataclass(slots=True, eq=False)
class Generation:
    """One node being decoded.

    `seed` and `branch` key its sampling noise together with the position. `tip` is the slot of the hidden state that
    the next token is sampled from: the node's own once it has run, an ancestor's before. `produced` counts the tokens
    of this generation; at most `pace` of them are made before the host looks. `counts` is there only if the settings
    have a penalty, `without` only if they name continuations to leave out, and `matcher`, which is the node's own, only
    under a grammar. `top_logprobs` gathers what the settings ask for, one entry a token. A `probe` ends as soon as it
    has its tip.
    """

    node: Node
    params: SamplingParams
    seed: int
    branch: int
    priority: float
    order: int
    stop_text: StopText | None
    stop_ids: frozenset[int]
    probe: bool = False
    tip: int = -1
    produced: int = 0
    pace: int = 1
    counts: TokenCounts | None = None
    without: Without | None = None
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    matcher: Matcher | None = None
    finish_reason: FinishReason | None = None
    error: DendriteError | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.finish_reason is not None

    @property
    def host_sampled(self) -> bool:
        """Whether the host must look at every token before the next can be drawn."""
        params = self.params
        watched = bool(params.logit_bias) or params.top_logprobs > 0
        return watched or self.counts is not None or self.without is not None

    def burst(self, longest_context: int) -> int:
        """Most tokens to generate before the host looks: few at first, so that a stream starts at once."""
        if self.host_sampled:
            return 1
        left = min(self.params.max_tokens - self.produced, longest_context - self.node.length)
        return min(left, 1 + 3 * self.produced, self.pace)

    def stops_with(self, token: int) -> bool:
        """Note a token, and tell whether the generation stops with it, whatever its grammar says."""
        if self.counts is not None:
            self.counts.add(token)
        if self.without is not None:
            self.without.push(token)
        if token in self.stop_ids:
            return True
        return self.stop_text is not None and self.stop_text.push(token)

    def stopped_at(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, which its grammar has taken, the generation takes; it ends with one that stops it."""
        if self.stop_text is None and not self.host_sampled and self.stop_ids.isdisjoint(tokens):
            return len(tokens)
        for count, token in enumerate(tokens, start=1):
            if self.stops_with(token):
                self.finish_reason = "stop"
                return count
        return len(tokens)

    def rank(self) -> tuple[float, int]:
        """Sort key: the higher priority first, then the earlier arrival."""
        return (-self.priority, self.order)


@dataclass(slots=True, eq=False)
class Compute:
    """Tokens already on a node whose KV must be written: a prompt, a scored continuation, or a dropped segment.

    `collect[i]` is a token whose log-probability after the node's own token i is wanted in `logprobs`. With `seal`, the
    node enters the prefix cache once it is computed. `forced` describes tokens that a grammar left no choice about.
    """

    node: Node
    waiting: list[Generation] = field(default_factory=list)
    seal: bool = False
    collect: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    forced: Forced | None = None
    done: bool = False
    error: DendriteError | None = None


@dataclass(frozen=True, slots=True)
class Forced:
    """The last `count` tokens of a node, written for `generation` without sampling.

    `first_logprob` is the model's own of the first of them. `finish_reason` is what the generation ends with once they
    are computed, None if it goes on.
    """

    generation: Generation
    count: int
    first_logprob: float
    finish_reason: FinishReason | None


def raise_first(requests: Sequence[Generation | Compute]) -> None:
    """Raise what the first of them has failed with. A grammar's failure stays on its node: the others are good."""
    for request in requests:
        if request.error is not None and not isinstance(request.error, GrammarError):
            raise request.error


@dataclass(slots=True)
class TokenCounts:
    """Which tokens a path holds, kept for penalties: `seen` [V] bool, `generated` [V] float32."""

    seen: Tensor
    generated: Tensor

    @classmethod
    def of(cls, node: Node, params: SamplingParams, vocabulary: int) -> TokenCounts | None:
        """Count along the path of `node`; None where the settings have no penalty."""
        if not has_penalty(params):
            return None
        counts = cls(torch.zeros(vocabulary, dtype=torch.bool), torch.zeros(vocabulary))
        counts.seen[torch.tensor(node.path_tokens, dtype=torch.int64)] = True
        for token in generated_on_path(node):
            counts.generated[token] += 1
        return counts

    def add(self, token: int) -> None:
        """Note one more generated token."""
        self.seen[token] = True
        self.generated[token] += 1
