"""An engine that never waits: it takes requests, runs a step when it is told to, and says what has ended."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from dendrite.config import EngineConfig, SamplingParams, checked
from dendrite.engine.capacity import kv_pages
from dendrite.engine.clock import StepClock
from dendrite.engine.constraints import Constraints
from dendrite.engine.device import check_types, make_attention, make_device_loop, make_runner
from dendrite.engine.exchange import KvExchange
from dendrite.engine.generation import Compute, Generation
from dendrite.engine.intake import Intake
from dendrite.engine.requests import Requests
from dendrite.engine.sampler import logprobs_of
from dendrite.engine.scheduler import Scheduler
from dendrite.engine.stats import EngineStats
from dendrite.engine.stepper import Stepper, StepResult
from dendrite.errors import InvalidArgument
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder
from dendrite.model.tokenizer import Tokenizer
from dendrite.model.value_head import ValueHead

if TYPE_CHECKING:
    from dendrite.parallel.leader import Leader


class EngineCore:
    """The parts of an engine, and what a caller does with them that waits for many requests at once.

    `Engine` adds the calls that wait for what they ask for.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        tokenizer: Tokenizer | None = None,
        value_head: ValueHead | None = None,
        config: EngineConfig | None = None,
        leader: Leader | None = None,
        kv_scales: torch.Tensor | None = None,
    ) -> None:
        """Take a decoder, and what goes with it.

        Args:
            decoder: the model.
            tokenizer: None allows token ids alone.
            value_head: None leaves nodes without values.
            config: the engine's settings.
            leader: of the ranks of which the decoder is the first's part; None where it is the whole model.
            kv_scales: [layers, 2, Hkv] float32, of the decoder's keys and values in FP8; None is 1. See
                `dendrite.quant.kv_scales`.

        Raises:
            InvalidArgument: settings that this decoder or device does not allow.
        """
        self.config = config = config or EngineConfig()
        if config.tensor_parallel != (leader.size if leader is not None else 1):
            limit = "a decoder that is given must come with the leader of that many ranks (`from_pretrained` makes one)"
            raise InvalidArgument("tensor_parallel", config.tensor_parallel, limit)
        self.tokenizer = tokenizer
        self._leader = leader
        shape = decoder.config
        kv_dtype = check_types(config, decoder)
        pages = kv_pages(config, shape, kv_dtype, decoder.device)
        if leader is not None:
            pages = leader.allocate(pages)
        self.cache = KvCache(pages, config.page_size, prefix_cache=config.prefix_cache, on_free=self._on_free)
        storage = KvStorage.of(shape, pages, config.page_size, kv_dtype, decoder.device, kv_scales)
        self._pages = storage
        attention = make_attention(config, storage, shape.num_heads, decoder.dtype)
        self._runner = make_runner(decoder, value_head, storage, attention, leader)
        self._vocabulary = shape.vocab_size
        self.longest_context = longest = min(shape.max_context, (pages - 1) * config.page_size)
        self._loop = loop = make_device_loop(decoder, storage, self._runner.tips, self.cache, config, longest)
        max_burst = config.max_burst if loop is not None else 1
        self._requests = Requests(self.cache)
        self._scheduler = Scheduler(self.cache, self._requests, config, longest, max_burst)
        self._constraints = Constraints(tokenizer, self._vocabulary, config, on_cuda=loop is not None)
        self._stepper = Stepper(
            self.cache, self._requests, self._scheduler, self._runner, config, longest, self._constraints, loop
        )
        self._exchange = KvExchange(self.cache, self._requests, self._runner)
        self._intake = Intake(self.cache, self._requests, config, tokenizer, self._vocabulary, longest)

    @property
    def has_value_head(self) -> bool:
        """Whether nodes get values."""
        return self._runner.has_value_head

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows, from 0 on."""
        return self._vocabulary

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self._requests.has_work

    def submit_prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> tuple[Node, Compute | None]:
        """Like `prefill`, without running it: the root and its job, None if the prompt is cached as a whole."""
        root = self._intake.root(self.token_ids(prompt, "prompt"), seed)
        self._stepper.counters.count_prompt(root.base)
        if not root.tokens:
            return root, None
        job = Compute(root, seal=True)
        self._requests.compute(job)
        return root, job

    def submit(
        self,
        nodes: Node | Sequence[Node],
        params: SamplingParams | None = None,
        *,
        priority: float = 0.0,
        **settings: Any,
    ) -> list[Generation]:
        """Queue nodes for decoding; `step` runs them. A higher `priority` is served first.

        Raises:
            NodeReleased, InvalidArgument, ContextOverflow, GrammarError: nothing was queued.
        """
        nodes = [nodes] if isinstance(nodes, Node) else list(nodes)
        base = params.model_dump() if params is not None and settings else {}
        params = checked(SamplingParams, {**base, **settings}) if settings or params is None else params
        generations = self._intake.generations(nodes, params, priority)
        failed = self._constraints.begin(generations, params)
        for generation in generations:
            if generation in failed:
                self._requests.fail_alone(generation, failed[generation])
            else:
                self._requests.add(generation)
        return generations

    def submit_probe(self, node: Node) -> Generation:
        """Queue the recovery of a node's last hidden state, for `probed_value` and `first_score`."""
        probe = self._intake.probe(node)
        self._requests.add(probe)
        return probe

    def submit_score(self, node: Node, tokens: Sequence[int]) -> tuple[Node, Compute]:
        """Queue a scratch child of `node` whose job gathers the log-probabilities of `tokens[1:]`; release it after."""
        return self._write(node, tokens[:-1], tokens[1:])

    def submit_append(self, node: Node, tokens: Sequence[int]) -> tuple[Node, Compute]:
        """Queue a child of `node` that holds `tokens`; its job gathers the log-probabilities of `tokens[1:]`."""
        return self._write(node, tokens, tokens[1:])

    def token_ids(self, text: str | Sequence[int], field: str, *, special: bool = True) -> list[int]:
        """Encode a text, or check given ids; `field` is what an error calls them.

        A text gets the tokens that begin a sequence, where the model uses such, unless `special` is False.

        Raises:
            InvalidArgument: there is no token, or one that the vocabulary lacks.
        """
        return self._intake.token_ids(text, field, special=special)

    def first_score(self, probe: Generation, tokens: Sequence[int]) -> list[float]:
        """Log-probability of the first of `tokens` after a finished probe's node."""
        logits = self._runner.logits_at([probe.tip])
        return [float(logprobs_of(logits, torch.tensor([tokens[0]], device=logits.device)))]

    def probed_value(self, probe: Generation) -> float | None:
        """The value head's estimate at a finished probe's node."""
        values = self._runner.values_at([probe.tip])
        return values[0] if values else None

    def cancel(self, generation: Generation) -> None:
        """End a generation now; its node keeps what it has generated. Does nothing once it has ended."""
        self._requests.cancel(generation)

    def step(self) -> StepResult:
        """Run one batch of whatever was submitted."""
        return self._stepper.step()

    def set_clock(self, clock: StepClock) -> None:
        """Have `clock` told of the phases of every step from now on; a plain `StepClock()` ends that."""
        self._stepper.set_clock(clock)

    def stats(self) -> EngineStats:
        """Totals and present holdings."""
        seen, cache, requests = self._stepper.counters, self.cache, self._requests
        return EngineStats(
            steps=seen.steps,
            prefill_tokens=seen.prefill_tokens,
            recomputed_tokens=seen.recomputed_tokens,
            decode_tokens=seen.decode_tokens,
            cached_tokens=seen.cached_tokens,
            forced_tokens=seen.forced_tokens,
            retips=seen.retips,
            forks=cache.forks,
            tail_copies=cache.cow_copies,
            takeovers=cache.takeovers,
            preemptions=self._scheduler.preemptions,
            dropped_pages=requests.idle.dropped_pages,
            evicted_pages=cache.evicted_pages,
            shared_ratio=seen.shared_tokens / seen.context_tokens if seen.context_tokens else 0.0,
            seconds_running=seen.seconds_running,
            pages_total=cache.pool.num_pages - 1,
            pages_free=cache.pool.num_free,
            pages_held=cache.held_pages,
            pages_cached=cache.cached_pages,
            running=len(requests.running),
            waiting=requests.waiting_count,
            page_tokens=self._pages.page_size,
            page_bytes=self._pages.page_bytes * self.config.tensor_parallel,
            weight_bytes=self._runner.decoder.weights.nbytes * self.config.tensor_parallel,
            kv_scale_bytes=self._pages.scale_bytes * self.config.tensor_parallel,
            tensor_parallel=self.config.tensor_parallel,
            device_loop=self._loop is not None,
            prompts=seen.prompts,
            prompt_hits=seen.prompt_hits,
            exported_tokens=self._exchange.exported_tokens,
            imported_tokens=self._exchange.imported_tokens,
            **(self._loop.savings() if self._loop is not None else {}),
        )

    def check(self) -> None:
        """Verify the KV invariants.

        Raises:
            InvariantViolation: one does not hold.
        """
        self.cache.check()

    def close(self) -> None:
        """Drop cached prefixes, end threads and other ranks. Live nodes stay their holders' to release. Idempotent."""
        self._constraints.close()
        self.cache.clear_cache()
        if self._leader is not None:
            self._leader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, node: Node, tokens: Sequence[int], collect: Sequence[int]) -> tuple[Node, Compute]:
        child = self._intake.child(node, tokens)
        job = Compute(child, collect=list(collect))
        self._requests.compute(job)
        return child, job

    def _on_free(self, node: Node) -> None:
        if node.tip >= 0:
            self._runner.tips.release(node.tip)
            node.tip = -1
        self._requests.idle.freed(node)
