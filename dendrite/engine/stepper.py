"""One engine step: schedule, sample, run, post-process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dendrite.config import EngineConfig
from dendrite.engine.batch import BatchBuilder
from dendrite.engine.clock import StepClock
from dendrite.engine.constraints import Constraints, note_raw
from dendrite.engine.forced import ForcedTokens
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.plan import Chunk, Plan, chunk_rows, last_rows
from dendrite.engine.runner import ModelRunner
from dendrite.engine.sampler import (
    Keys,
    SamplingBatch,
    likeliest,
    logprobs_of,
    penalise,
    row_keys,
    sample,
    uniform_at,
)
from dendrite.engine.scheduler import Scheduler
from dendrite.engine.stats import Counters
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node

if TYPE_CHECKING:
    from dendrite.engine.device_loop import DeviceLoop


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token: its node, id, natural-log probability, and how the generation ended if this was its last."""

    node: Node
    token: int
    logprob: float
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """What one step generated on one node: tokens with their natural-log probabilities, and how it ended if it did."""

    node: Node
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step brought: tokens, and the requests that ended with it (by success or failure)."""

    spans: list[Span]
    generations: list[Generation]
    computes: list[Compute]

    @property
    def events(self) -> list[TokenEvent]:
        """Every token by itself, node by node."""
        return [event for span in self.spans for event in span_events(span)]


def span_events(span: Span) -> Iterator[TokenEvent]:
    """The tokens of a span one by one."""
    last = len(span.tokens) - 1
    for at, (token, logprob) in enumerate(zip(span.tokens, span.logprobs, strict=True)):
        yield TokenEvent(span.node, token, logprob, span.finish_reason if at == last else None)


class Stepper:
    """Carries out what the scheduler plans.

    A token is sampled from its node's tip first and run through the model second, so that after every step each node
    has the KV of all its tokens, and the hidden state that its next token, its value and its forks start from.

    On the GPU sampled tokens go through the device loop, many a step; given ones (and those that the host must look at
    one by one) go through the runner.
    """

    def __init__(
        self,
        cache: KvCache,
        scheduler: Scheduler,
        runner: ModelRunner,
        config: EngineConfig,
        longest_context: int,
        constraints: Constraints,
        loop: DeviceLoop | None = None,
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._runner = runner
        self._constraints = constraints
        self._forced = ForcedTokens(scheduler, runner, constraints, longest_context)
        self._loop = loop
        self._builder = BatchBuilder(cache, config.page_size, runner.batch_device)
        self._debug_checks = config.debug_checks
        self._longest_context = longest_context
        self._sampling: tuple[int, SamplingBatch, Keys] | None = None
        self._clock = StepClock()
        self.counters = Counters()

    def set_clock(self, clock: StepClock) -> None:
        """Have `clock` told of the phases of every step from now on."""
        self._clock = clock
        if self._loop is not None:
            self._loop.clock = clock

    def step(self) -> StepResult:
        """Run one batch: schedule, sample, run, post-process."""
        began = time.perf_counter()
        self._clock.begin()
        plan = self._scheduler.schedule()
        try:
            plan = self._without_failed(plan)
        except BaseException:
            self._runner.copy_tails(plan.copies)  # the pages are reserved, and nobody will ask for the copies again
            raise
        self._clock.enter("launch")
        self._runner.copy_tails(plan.copies)
        if self._loop is not None and not any(generation.host_sampled for generation in plan.decodes):
            spans = self._burst(self._loop, plan)
            try:
                self._compute(plan.given, [])
            except BaseException:
                self._put_away([generation for generation in plan.decodes if generation.done])
                raise
        else:
            drawn = self._sample(plan.decodes)
            try:
                self._compute(plan, [token for token, _ in drawn])
            except BaseException:
                for generation in plan.decodes:
                    del generation.node.tokens[-1], generation.node.logprobs[-1]
                self._requeue(plan.decodes)
                raise
            spans = self._accept(plan.decodes, drawn)
        result = self._finish(plan, spans)
        self.counters.steps += 1
        self.counters.seconds_running += time.perf_counter() - began
        if self._debug_checks:
            self._cache.check()
        self._clock.end(plan)
        return result

    def _without_failed(self, plan: Plan) -> Plan:
        """Take out the nodes whose grammar has passed a limit: they fail alone."""
        failed = self._constraints.failed(plan.decodes)
        for generation, error in failed:
            self._cache.unreserve(generation.node)
            self._scheduler.fail(generation, error)
        return replace(plan, decodes=[g for g in plan.decodes if not g.done]) if failed else plan

    def _burst(self, loop: DeviceLoop, plan: Plan) -> list[Span]:
        """Generate up to `plan.burst` tokens on every decoding node."""
        if not plan.decodes:
            return []
        for generation in plan.decodes:
            if generation.node.tip < 0:
                self._own_tip(generation.node)
        try:
            burst = loop.run(plan.decodes, plan.burst, self._scheduler.version, self._constraints)
        except BaseException:
            for generation in plan.decodes:
                self._constraints.restart(generation)
            self._requeue(plan.decodes)
            raise
        self._clock.enter("post")
        spans: list[Span] = []
        cut: list[tuple[int, Generation, int]] = []
        made, going = burst.steps, burst.walk.going if burst.walk is not None else frozenset()
        for row, generation in enumerate(plan.decodes):
            node, tokens, logprobs = generation.node, burst.tokens[row], burst.logprobs[row]
            generation.tip = node.tip
            walk = burst.walk if generation.matcher is not None else None
            accepted = self._stopped_at(generation, tokens if walk is None else tokens[: walk.taken[row]])
            if accepted < made:
                del tokens[accepted:], logprobs[accepted:]
                cut.append((row, generation, accepted))
            node.tokens += tokens
            node.logprobs += logprobs
            if walk is not None and burst.raw is not None:
                note_raw(node, burst.raw[row][:accepted])
                at_end = accepted == made and row in going
                if not at_end and self._constraints.align(generation):
                    generation.finish_reason = generation.finish_reason or "stop"
            self._cache.commit(node, accepted)
            if accepted < plan.burst:
                self._cache.unreserve(node)
            self._count(generation, accepted)
            spans.append(self._close(generation, tokens, logprobs))
        loop.rewind(cut)
        if burst.walk is not None and burst.walk.paused:
            self._forced.look_ahead(plan.decodes, self._accepted)
        return spans

    def _sample(self, decodes: list[Generation]) -> list[tuple[int, float]]:
        """Draw a token, with its log-probability, for every decoding node from its tip, and append it to the node."""
        if not decodes:
            return []
        self._clock.enter("model")
        logits = self._runner.logits_at([generation.tip for generation in decodes])
        self._clock.enter("sample")
        masked = self._constraints.mask(logits, decodes)
        batch, keys = self._sampling_batch(decodes)
        adjusted = self._adjusted(masked, batch, decodes)
        tokens = sample(adjusted, batch, self._noise(decodes, keys))
        drawn = list(zip(tokens.tolist(), logprobs_of(masked, tokens).tolist(), strict=True))
        self._note_likeliest(decodes, masked)
        for generation, (token, logprob) in zip(decodes, drawn, strict=True):
            generation.node.tokens.append(token)
            generation.node.logprobs.append(logprob)
        if masked is not logits:
            for generation, raw in zip(decodes, logprobs_of(logits, tokens).tolist(), strict=True):
                if generation.matcher is not None:
                    note_raw(generation.node, [raw])
        return drawn

    def _note_likeliest(self, decodes: list[Generation], logits: Tensor) -> None:
        rows = [row for row, generation in enumerate(decodes) if generation.params.top_logprobs]
        if not rows:
            return
        most = min(max(decodes[row].params.top_logprobs for row in rows), logits.shape[-1])
        found = likeliest(logits[rows], most)
        for row, pairs in zip(rows, found, strict=True):
            decodes[row].top_logprobs.append(pairs[: decodes[row].params.top_logprobs])

    def _accept(self, decodes: list[Generation], drawn: list[tuple[int, float]]) -> list[Span]:
        spans: list[Span] = []
        for generation, (token, logprob) in zip(decodes, drawn, strict=True):
            self._accepted(generation, [token])
            self._cache.commit(generation.node, 1)
            self._count(generation, 1)
            spans.append(self._close(generation, [token], [logprob]))
        self._forced.look_ahead(decodes, self._accepted)
        return spans

    def _sampling_batch(self, decodes: list[Generation]) -> tuple[SamplingBatch, Keys]:
        """The settings of the rows, and the keys of their noise, kept while the rows stay the same."""
        version = self._scheduler.version
        if self._sampling is None or self._sampling[0] != version:
            decoder = self._runner.decoder
            settings = [generation.params for generation in decodes]
            batch = SamplingBatch.of(settings, decoder.config.vocab_size, decoder.device)
            seeds, branches = np.array([(g.seed, g.branch) for g in decodes], dtype=np.uint64).T
            self._sampling = version, batch, row_keys(seeds, branches)
        return self._sampling[1:]

    def _adjusted(self, logits: Tensor, batch: SamplingBatch, decodes: list[Generation]) -> Tensor:
        rows, tokens, changes = self._changes(decodes)
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

    def _changes(self, decodes: list[Generation]) -> tuple[list[int], list[int], list[float]]:
        """Rows, tokens and changes of their logits: biases, and what takes the share of known continuations away."""
        rows: list[int] = []
        tokens: list[int] = []
        changes: list[float] = []
        for row, generation in enumerate(decodes):
            if not generation.params.logit_bias and generation.without is None:
                continue
            changed = dict(generation.params.logit_bias)
            if generation.without is not None:
                for token, log_share in generation.without.log_shares().items():
                    share = log_share * (generation.params.temperature or 1.0)  # divided by it later
                    changed[token] = changed.get(token, 0.0) + share
            rows.extend([row] * len(changed))
            tokens.extend(changed)
            changes.extend(changed.values())
        return rows, tokens, changes

    def _noise(self, decodes: list[Generation], keys: Keys) -> npt.NDArray[np.float64]:
        return uniform_at(keys, np.array([generation.node.length for generation in decodes], dtype=np.uint64))

    def _compute(self, plan: Plan, tokens: list[int]) -> None:
        """Run a plan's rows through the model, where `tokens` are those just appended to its decoding nodes."""
        if plan.empty:
            return
        self._clock.enter("launch")
        batch = self._builder.build(plan, tokens)
        self._clock.enter("model")
        hidden = self._runner.run(batch)
        self._clock.enter("post")
        scores = self._scores(plan, hidden)  # what may fail comes before anything is noted
        self._store_tips(plan, hidden)
        self.counters.retips += len(plan.retips)
        for chunk, logprobs in zip(plan.chunks, scores, strict=True):
            self._cache.commit(chunk.job.node, chunk.count)
            chunk.job.logprobs += logprobs

    def _count(self, generation: Generation, tokens: int) -> None:
        """Add what `tokens` steps of a generation that has just made them have read."""
        seen, node = self.counters, generation.node
        seen.decode_tokens += tokens
        seen.context_tokens += tokens * node.length - tokens * (tokens - 1) // 2
        seen.shared_tokens += tokens * self._cache.shared_tokens(node)

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

    def _requeue(self, decodes: list[Generation]) -> None:
        """Have generations whose step has failed go on later.

        Their nodes' hidden states may be those of other tokens, so they are forgotten, and computed again when needed.
        """
        for generation in decodes:
            node = generation.node
            if node.tip >= 0:
                self._runner.tips.release(node.tip)
                node.tip = -1
        self._scheduler.interrupted(decodes)

    def _own_tip(self, node: Node) -> int:
        if node.tip < 0:
            node.tip = self._runner.tips.allocate()
        return node.tip

    def _scores(self, plan: Plan, hidden: Tensor) -> list[list[float]]:
        """For each chunk, the log-probabilities that its job wants of it."""
        scores: list[list[float]] = []
        for chunk in plan.chunks:
            wanted = chunk.job.collect[chunk.start : chunk.start + chunk.count]
            if not wanted:
                scores.append([])
                continue
            first = chunk_rows(plan, chunk).start
            logits = self._runner.decoder.logits(hidden[first : first + len(wanted)])
            scores.append(logprobs_of(logits, torch.tensor(wanted, device=logits.device)).tolist())
        return scores

    def _finish(self, plan: Plan, spans: list[Span]) -> StepResult:
        """Put away what has ended, and let what waited for this step go on."""
        ended = [generation for generation in plan.decodes if generation.done]
        for written in filter(None, (self._forced.computed(chunk.job) for chunk in plan.chunks if chunk.last)):
            generation, tokens = written
            spans.append(self._close(generation, tokens, [0.0] * len(tokens)))
            ended += [generation] if generation.done else []
        self._put_away(ended)
        for retip in plan.retips:
            self._scheduler.tipped(retip)
        computes = [chunk.job for chunk in plan.chunks if chunk.last]
        for chunk in plan.chunks:
            self._computed(chunk)
        self._write_values(ended)
        gone = self._scheduler.take_ended()
        ended += [request for request in gone if isinstance(request, Generation)]
        computes += [request for request in gone if isinstance(request, Compute)]
        return StepResult(spans, ended, computes)

    def _accepted(self, generation: Generation, tokens: list[int]) -> int:
        """How many of `tokens` the generation takes, up to and with one that stops it; moves its grammar over them."""
        for count, token in enumerate(tokens, start=1):
            ended = self._constraints.advance(generation, token)
            if _stops(generation, token) or ended:
                generation.finish_reason = generation.finish_reason or "stop"
                return count
        return len(tokens)

    def _stopped_at(self, generation: Generation, tokens: list[int]) -> int:
        """How many of `tokens` the generation takes, of those that its grammar has taken already."""
        if generation.stop_text is None and not generation.host_sampled and generation.stop_ids.isdisjoint(tokens):
            return len(tokens)
        for count, token in enumerate(tokens, start=1):
            if _stops(generation, token):
                generation.finish_reason = "stop"
                return count
        return len(tokens)

    def _close(self, generation: Generation, tokens: list[int], logprobs: list[float]) -> Span:
        """Note what a generation has just made, and whether that is all it may."""
        generation.produced += len(tokens)
        full = generation.node.length >= self._longest_context
        if not generation.done and (full or generation.produced >= generation.params.max_tokens):
            generation.finish_reason = "length"
        return Span(generation.node, tokens, logprobs, generation.finish_reason)

    def _put_away(self, ended: list[Generation]) -> None:
        """Take generations that have ended out of the running batch, and have their nodes tell how they ended."""
        for generation in ended:
            generation.node.finish_reason, generation.node.error = generation.finish_reason, generation.error
        if ended:
            self._scheduler.finished(ended)

    def _write_values(self, ended: list[Generation]) -> None:
        values = self._runner.values_at([generation.tip for generation in ended])
        for generation, value in zip(ended, values, strict=False):
            generation.node.value = value

    def _computed(self, chunk: Chunk) -> None:
        again = self._scheduler.computed(chunk)
        self.counters.recomputed_tokens += again
        if chunk.job.forced is None:
            self.counters.prefill_tokens += chunk.count - again
        else:
            self.counters.forced_tokens += chunk.count - again
        if chunk.last and chunk.job.seal:
            self._cache.seal(chunk.job.node)


def _stops(generation: Generation, token: int) -> bool:
    """Note a token, and tell whether the generation stops with it, whatever its grammar says."""
    if generation.counts is not None:
        generation.counts.add(token)
    if generation.without is not None:
        generation.without.push(token)
    if token in generation.stop_ids:
        return True
    return generation.stop_text is not None and generation.stop_text.push(token)
