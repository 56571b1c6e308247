"""Tokens that a grammar leaves no choice about: written without sampling, and computed as one prefill chunk.

    sampled t ─► the grammar forces f1 f2 f3 ─► the node holds t f1 f2 f3, and waits ─► chunk (f1 f2 f3) ─► sampling

Their log-probability is 0, for nothing else was possible; the model's own comes from the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dendrite.engine.constraints import Constraints, note_raw
from dendrite.engine.generation import Compute, Forced, Generation
from dendrite.engine.requests import Requests
from dendrite.engine.runner import ModelRunner
from dendrite.engine.sampler import logprobs_of


class ForcedTokens:
    """Writes forced tokens to the nodes of one engine."""

    def __init__(self, requests: Requests, runner: ModelRunner, constraints: Constraints, longest_context: int) -> None:
        self._requests, self._runner, self._constraints = requests, runner, constraints
        self._longest_context = longest_context

    def look_ahead(self, decodes: Sequence[Generation], accepted: Callable[[Generation, list[int]], int]) -> None:
        """Write what must come next, and have masks computed for what comes after.

        Args:
            decodes: generations that have just made tokens, which are computed.
            accepted: takes tokens for a generation, and tells how many; it may end the generation with the last.
        """
        going = [generation for generation in decodes if generation.matcher is not None and not generation.done]
        runs: list[tuple[Generation, list[int]]] = []
        for generation in going:
            left = generation.params.max_tokens - generation.produced
            tokens = self._constraints.forced(generation, min(left, self._longest_context - generation.node.length))
            if tokens:
                runs.append((generation, tokens[: accepted(generation, tokens)]))
        if runs:
            self._write(runs)
        self._constraints.request(going)

    def computed(self, job: Compute) -> tuple[Generation, list[int]] | None:
        """Take in forced tokens that have been computed.

        Returns:
            The generation that they are for, which may end with them, and the tokens. None for any other job, and where
            nobody waits any more.
        """
        forced = job.forced
        if forced is None:
            return None
        after_first = job.logprobs[len(job.logprobs) - forced.count + 1 :]
        note_raw(job.node, [forced.first_logprob, *after_first])
        generation = forced.generation
        if generation.done:
            return None
        generation.tip = job.node.tip
        generation.finish_reason = forced.finish_reason
        return generation, job.node.tokens[-forced.count :]

    def _write(self, runs: Sequence[tuple[Generation, list[int]]]) -> None:
        logits = self._runner.logits_at([generation.tip for generation, _ in runs])
        firsts = logprobs_of(logits, torch.tensor([tokens[0] for _, tokens in runs], device=logits.device)).tolist()
        for (generation, tokens), first in zip(runs, firsts, strict=True):
            node = generation.node
            forced = Forced(generation, len(tokens), first, generation.finish_reason)
            generation.finish_reason = None  # it ends when its last token has been computed
            self._runner.tips.release(node.tip)
            node.tip = -1
            node.tokens += tokens
            node.logprobs += [0.0] * len(tokens)
            if generation.params.top_logprobs:
                generation.top_logprobs += [((token, 0.0),) for token in tokens]
            self._requests.extend(generation, Compute(node, collect=node.tokens[1:], forced=forced))
