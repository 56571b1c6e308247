"""One engine step: schedule, sample, run, post-process."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dendrite.config import EngineConfig
from dendrite.engine.batch import BatchBuilder
from dendrite.engine.generation import Compute, FinishReason, Generation
from dendrite.engine.plan import Chunk, Plan, chunk_rows, last_rows
from dendrite.engine.runner import ModelRunner
from dendrite.engine.sampler import SamplingBatch, logprobs_of, penalise, sample, uniform
from dendrite.engine.scheduler import Scheduler
from dendrite.engine.stats import Counters
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token: its node, id, natural-log probability, and how the generation ended if this was its last."""

    node: Node
    token: int
    logprob: float
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step brought: tokens, and the requests that ended with it (by success or failure)."""

    events: list[TokenEvent]
    generations: list[Generation]
    computes: list[Compute]


class Stepper:
    """Carries out what the scheduler plans.

    A token is sampled from its node's tip first and run through the model second, so that after every step each node
    has the KV of all its tokens, and the hidden state that its next token, its value and its forks start from.
    """

    def __init__(
        self,
        cache: KvCache,
        scheduler: Scheduler,
        runner: ModelRunner,
        config: EngineConfig,
        longest_context: int,
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._runner = runner
        self._builder = BatchBuilder(cache, config.page_size, runner.decoder.device)
        self._debug_checks = config.debug_checks
        self._longest_context = longest_context
        self._sampling: tuple[int, SamplingBatch] | None = None
        self.counters = Counters()

    def step(self) -> StepResult:
        """Run one batch: schedule, sample, run, post-process."""
        began = time.perf_counter()
        plan = self._scheduler.schedule()
        logprobs, tokens = self._sample(plan.decodes)
        if not plan.empty:
            hidden = self._run(plan, tokens)
            self._store_tips(plan, hidden)
            self._collect_scores(plan, hidden)
        result = self._finish(plan, tokens, logprobs)
        self.counters.steps += 1
        self.counters.seconds_running += time.perf_counter() - began
        if self._debug_checks:
            self._cache.check()
        return result

    def _sample(self, decodes: list[Generation]) -> tuple[list[float], list[int]]:
        """Draw a token for every decoding node from its tip; the tokens are appended to the nodes."""
        if not decodes:
            return [], []
        logits = self._runner.logits_at([generation.tip for generation in decodes])
        batch = self._sampling_batch(decodes)
        adjusted = self._adjusted(logits, batch, decodes)
        drawn = sample(adjusted, batch, self._noise(decodes))
        logprobs: list[float] = logprobs_of(logits, drawn).tolist()
        tokens: list[int] = drawn.tolist()
        for generation, token, logprob in zip(decodes, tokens, logprobs, strict=True):
            generation.node.tokens.append(token)
            generation.node.logprobs.append(logprob)
        return logprobs, tokens

    def _sampling_batch(self, decodes: list[Generation]) -> SamplingBatch:
        version = self._scheduler.version
        if self._sampling is None or self._sampling[0] != version:
            decoder = self._runner.decoder
            settings = [generation.params for generation in decodes]
            self._sampling = version, SamplingBatch.of(settings, decoder.config.vocab_size, decoder.device)
        return self._sampling[1]

    def _adjusted(self, logits: Tensor, batch: SamplingBatch, decodes: list[Generation]) -> Tensor:
        rows, tokens, changes = self._left_out(decodes)
        if not batch.penalised and not rows:
            return logits
        logits = logits.clone()
        for row in batch.penalised:
            counts = decodes[row].counts
            assert counts is not None
            logits[row] = penalise(
                logits[row],
                decodes[row].params,
                counts.seen.to(logits.device),
                counts.generated.to(logits.device),
            )
        if rows:
            logits[rows, tokens] += torch.tensor(changes, device=logits.device)
        return logits

    def _left_out(self, decodes: list[Generation]) -> tuple[list[int], list[int], list[float]]:
        """Rows, tokens and changes of their logits that take the share of known continuations away."""
        rows: list[int] = []
        tokens: list[int] = []
        changes: list[float] = []
        for row, generation in enumerate(decodes):
            if generation.without is not None:
                for token, log_share in generation.without.log_shares().items():
                    rows.append(row)
                    tokens.append(token)
                    changes.append(log_share * (generation.params.temperature or 1.0))  # divided by it later
        return rows, tokens, changes

    def _noise(self, decodes: list[Generation]) -> npt.NDArray[np.float64]:
        keys = np.array([(g.seed, g.branch, g.node.length) for g in decodes], dtype=np.uint64)
        return uniform(keys[:, 0], keys[:, 1], keys[:, 2])

    def _run(self, plan: Plan, tokens: list[int]) -> Tensor:
        batch = self._builder.build(plan, tokens)
        hidden = self._runner.run(batch, plan.copies)
        for generation in plan.decodes:
            self._cache.commit(generation.node, 1)
        for chunk in plan.chunks:
            self._cache.commit(chunk.job.node, chunk.count)
        self._count(plan)
        return hidden

    def _count(self, plan: Plan) -> None:
        seen = self.counters
        seen.decode_tokens += len(plan.decodes)
        seen.retips += len(plan.retips)
        for generation in plan.decodes:
            seen.context_tokens += generation.node.length
            seen.shared_tokens += self._cache.shared_tokens(generation.node)

    def _store_tips(self, plan: Plan, hidden: Tensor) -> None:
        """Keep the last hidden state of every sequence that has come to the end of its tokens."""
        slots: list[int] = []
        rows: list[int] = []
        ends = last_rows(plan)
        for row, generation in enumerate(plan.decodes):
            generation.tip = self._own_tip(generation.node)
            slots.append(generation.tip)
            rows.append(row)
        for row, retip in enumerate(plan.retips, start=len(plan.decodes)):
            at_end = retip.node.length == retip.length
            for generation in retip.waiting:
                generation.tip = self._own_tip(retip.node if at_end else generation.node)
                slots.append(generation.tip)
                rows.append(row)
        for at, chunk in enumerate(plan.chunks, start=len(plan.decodes) + len(plan.retips)):
            if chunk.last:
                slots.append(self._own_tip(chunk.job.node))
                rows.append(ends[at])
        if slots:
            self._runner.tips.write(slots, hidden if rows == list(range(len(hidden))) else hidden[rows])

    def _own_tip(self, node: Node) -> int:
        if node.tip < 0:
            node.tip = self._runner.tips.allocate()
        return node.tip

    def _collect_scores(self, plan: Plan, hidden: Tensor) -> None:
        for chunk in plan.chunks:
            wanted = chunk.job.collect[chunk.start : chunk.start + chunk.count]
            if wanted:
                rows = chunk_rows(plan, chunk)
                logits = self._runner.decoder.logits(hidden[rows.start : rows.stop])
                chunk.job.logprobs += logprobs_of(logits, torch.tensor(wanted, device=logits.device)).tolist()

    def _finish(self, plan: Plan, tokens: list[int], logprobs: list[float]) -> StepResult:
        """Decide what has ended, and let what waited for this step go on."""
        for generation, token in zip(plan.decodes, tokens, strict=True):
            generation.finish_reason = self._finish_reason(generation, token)
        ended = [generation for generation in plan.decodes if generation.done]
        self._write_values(ended)
        if ended:
            self._scheduler.finished(ended)
        for retip in plan.retips:
            self._scheduler.tipped(retip)
        computes = [chunk.job for chunk in plan.chunks if chunk.last]
        for chunk in plan.chunks:
            self._computed(chunk)
        events = [
            TokenEvent(generation.node, token, logprob, generation.finish_reason)
            for generation, token, logprob in zip(plan.decodes, tokens, logprobs, strict=True)
        ]
        gone = self._scheduler.take_ended()
        ended += [request for request in gone if isinstance(request, Generation)]
        computes += [request for request in gone if isinstance(request, Compute)]
        return StepResult(events, ended, computes)

    def _finish_reason(self, generation: Generation, token: int) -> FinishReason | None:
        generation.produced += 1
        if generation.counts is not None:
            generation.counts.add(token)
        if generation.without is not None:
            generation.without.push(token)
        if token in generation.stop_ids or (generation.stop_text is not None and generation.stop_text.push(token)):
            return "stop"
        full = generation.node.length >= self._longest_context
        return "length" if full or generation.produced >= generation.params.max_tokens else None

    def _write_values(self, ended: list[Generation]) -> None:
        for generation in ended:
            generation.node.finish_reason = generation.finish_reason
        values = self._runner.values_at([generation.tip for generation in ended])
        for generation, value in zip(ended, values, strict=False):
            generation.node.value = value

    def _computed(self, chunk: Chunk) -> None:
        again = self._scheduler.computed(chunk)
        self.counters.recomputed_tokens += again
        self.counters.prefill_tokens += chunk.count - again
        if chunk.last and chunk.job.seal:
            self._cache.seal(chunk.job.node)
