"""One engine step: schedule, sample, run, post-process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dendrite.config import EngineConfig
from dendrite.engine.clock import StepClock
from dendrite.engine.constraints import Constraints, note_raw
from dendrite.engine.forced import ForcedTokens
from dendrite.engine.forward import Forward
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.host_sampler import Drawn, HostSampler
from dendrite.engine.plan import Chunk, Plan
from dendrite.engine.requests import Requests
from dendrite.engine.runner import ModelRunner
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
        requests: Requests,
        scheduler: Scheduler,
        runner: ModelRunner,
        config: EngineConfig,
        longest_context: int,
        constraints: Constraints,
        loop: DeviceLoop | None = None,
    ) -> None:
        self._cache = cache
        self._requests = requests
        self._scheduler = scheduler
        self._runner = runner
        self._constraints = constraints
        self._forced = ForcedTokens(requests, runner, constraints, longest_context)
        self._loop = loop
        self._forward = Forward(cache, runner, config.page_size)
        self._sampler = HostSampler(constraints)
        self._debug_checks = config.debug_checks
        self._longest_context = longest_context
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
                self._forward.run(plan.given, [], self._clock)
            except BaseException:
                self._put_away([generation for generation in plan.decodes if generation.done])
                raise
        else:
            drawn = self._draw(plan.decodes)
            try:
                self._forward.run(plan, drawn.tokens if drawn is not None else [], self._clock)
            except BaseException:
                for generation in plan.decodes:
                    del generation.node.tokens[-1], generation.node.logprobs[-1]
                self._requeue(plan.decodes)
                raise
            spans = self._accept(plan.decodes, drawn) if drawn is not None else []
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
            self._requests.fail_alone(generation, error)
        return replace(plan, decodes=[g for g in plan.decodes if not g.done]) if failed else plan

    def _burst(self, loop: DeviceLoop, plan: Plan) -> list[Span]:
        """Generate up to `plan.burst` tokens on every decoding node."""
        if not plan.decodes:
            return []
        for generation in plan.decodes:
            if generation.node.tip < 0:
                self._forward.own_tip(generation.node)
        try:
            burst = loop.run(plan.decodes, plan.burst, self._requests.version, self._constraints)
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
            accepted = generation.stopped_at(tokens if walk is None else tokens[: walk.taken[row]])
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

    def _draw(self, decodes: list[Generation]) -> Drawn | None:
        """Draw a token for every decoding node from its tip, and append it to the node; None where there is none."""
        if not decodes:
            return None
        self._clock.enter("model")
        logits = self._runner.logits_at([generation.tip for generation in decodes])
        self._clock.enter("sample")
        drawn = self._sampler.draw(logits, decodes, self._requests.version)
        for generation, token, logprob in zip(decodes, drawn.tokens, drawn.logprobs, strict=True):
            generation.node.tokens.append(token)
            generation.node.logprobs.append(logprob)
        return drawn

    def _accept(self, decodes: list[Generation], drawn: Drawn) -> list[Span]:
        """Take in the tokens that were drawn, and have been computed."""
        spans: list[Span] = []
        for row, (generation, token, logprob) in enumerate(zip(decodes, drawn.tokens, drawn.logprobs, strict=True)):
            drawn.note(row, generation)
            self._accepted(generation, [token])
            self._cache.commit(generation.node, 1)
            self._count(generation, 1)
            spans.append(self._close(generation, [token], [logprob]))
        self._forced.look_ahead(decodes, self._accepted)
        return spans

    def _count(self, generation: Generation, tokens: int) -> None:
        """Add what `tokens` steps of a generation that has just made them have read."""
        seen, node = self.counters, generation.node
        seen.decode_tokens += tokens
        seen.context_tokens += tokens * node.length - tokens * (tokens - 1) // 2
        seen.shared_tokens += tokens * self._cache.shared_tokens(node)

    def _requeue(self, decodes: list[Generation]) -> None:
        """Have generations whose step has failed go on later.

        Their nodes' hidden states may be those of other tokens, so they are forgotten, and computed again when needed.
        """
        self._forward.forget_tips(generation.node for generation in decodes)
        self._requests.interrupted(decodes)

    def _finish(self, plan: Plan, spans: list[Span]) -> StepResult:
        """Put away what has ended, and let what waited for this step go on."""
        ended = [generation for generation in plan.decodes if generation.done]
        for written in filter(None, (self._forced.computed(chunk.job) for chunk in plan.chunks if chunk.last)):
            generation, tokens = written
            spans.append(self._close(generation, tokens, [0.0] * len(tokens)))
            ended += [generation] if generation.done else []
        self._put_away(ended)
        for retip in plan.retips:
            self._requests.tipped(retip)
        self.counters.retips += len(plan.retips)
        computes = [chunk.job for chunk in plan.chunks if chunk.last]
        for chunk in plan.chunks:
            self._computed(chunk)
        self._write_values(ended)
        gone = self._requests.take_ended()
        ended += [request for request in gone if isinstance(request, Generation)]
        computes += [request for request in gone if isinstance(request, Compute)]
        return StepResult(spans, ended, computes)

    def _accepted(self, generation: Generation, tokens: list[int]) -> int:
        """How many of `tokens` the generation takes, up to and with one that stops it; moves its grammar over them."""
        for count, token in enumerate(tokens, start=1):
            ended = self._constraints.advance(generation, token)
            if generation.stops_with(token) or ended:
                generation.finish_reason = generation.finish_reason or "stop"
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
            self._requests.finished(ended)

    def _write_values(self, ended: list[Generation]) -> None:
        values = self._runner.values_at([generation.tip for generation in ended])
        for generation, value in zip(ended, values, strict=False):
            generation.node.value = value

    def _computed(self, chunk: Chunk) -> None:
        again = self._requests.computed(chunk)
        self.counters.recomputed_tokens += again
        if chunk.job.forced is None:
            self.counters.prefill_tokens += chunk.count - again
        else:
            self.counters.forced_tokens += chunk.count - again
        if chunk.last and chunk.job.seal:
            self._cache.seal(chunk.job.node)
