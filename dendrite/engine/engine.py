"""The engine: nodes in, tokens out."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from dendrite.config import EngineConfig, SamplingParams, checked
from dendrite.engine.capacity import kv_pages
from dendrite.engine.clock import StepClock
from dendrite.engine.constraints import Constraints
from dendrite.engine.device import (
    check_types,
    choose_device,
    choose_dtype,
    make_attention,
    make_device_loop,
    make_runner,
)
from dendrite.engine.exchange import KvExchange
from dendrite.engine.generation import STOP_TEXT_PACE, STREAM_PACE, Compute, Generation, TokenCounts, raise_first
from dendrite.engine.paths import check_context
from dendrite.engine.requests import Requests
from dendrite.engine.sampler import logprobs_of
from dendrite.engine.scheduler import Scheduler
from dendrite.engine.stats import EngineStats
from dendrite.engine.stepper import Stepper, StepResult, TokenEvent, span_events
from dendrite.engine.stopping import StopText
from dendrite.engine.without import Without
from dendrite.errors import ContextOverflow, InvalidArgument, NodeReleased
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from dendrite.kv.path_kv import PathKv
from dendrite.kv.storage import KvStorage
from dendrite.limits import check_whole
from dendrite.model.decoder import Decoder
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer
from dendrite.model.value_head import ValueHead
from dendrite.parallel.local import form_group
from dendrite.quant.kv_scales import read_kv_scales

if TYPE_CHECKING:
    from dendrite.parallel.leader import Followers, Leader

_MASK = 2**64 - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that trees of one engine, and engines of neighbouring seeds, draw different noise."""


class Engine:
    """A model, its KV cache, and the trees that live in it.

    Not thread-safe: one thread makes all calls (`AsyncEngine` serves many callers). A node may be forked at any time,
    also between the tokens of `stream`. Use as a context manager, or call `close`.

    With a `leader`, the decoder is rank 0's part of a model that a tensor-parallel group shares: all that this class
    holds is on rank 0, and the runner has the other ranks do what it does.
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
        self._orders = 0
        self._trees = 0

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        config: EngineConfig | None = None,
        followers: Followers | None = None,
        **settings: Any,
    ) -> Engine:
        """Load a packaged model by name (`countdown`) or any Hugging Face folder by path.

        Args:
            model: name or path.
            config: the engine's settings.
            followers: the processes of the other ranks where `tensor_parallel` is above 1; None starts them on this
                machine. `close` ends them.
            **settings: fields of `EngineConfig` that replace those of `config`.

        Raises:
            ModelError: the folder is missing, corrupt, or of an architecture that Dendrite does not implement.
            InvalidArgument: a setting is unknown or out of range, or the model cannot be divided so.
            ClusterError: the other ranks did not start.
        """
        base = config.model_dump() if config is not None else {}
        config = checked(EngineConfig, {**base, **settings})
        folder = resolve(model)
        device = choose_device(config)
        leader = form_group(folder, config, device, followers)
        try:
            group = leader.group if leader is not None else None
            decoder = Decoder.from_folder(folder, choose_dtype(config, device), device, config.quantize, group)
            scales = read_kv_scales(folder, decoder.config, decoder.shard) if config.kv_dtype == "fp8" else None
            head = ValueHead.from_folder(folder, decoder.config.hidden_size, dtype=decoder.dtype, device=device)
            tokenizer = Tokenizer.from_folder(folder)
            return cls(decoder, tokenizer=tokenizer, value_head=head, config=config, leader=leader, kv_scales=scales)
        except BaseException:
            if leader is not None:
                leader.close()
            raise

    # ---------------------------------------------------------------- what callers do

    def prefill(self, prompt: str | Sequence[int], *, seed: int | None = None) -> Node:
        """Compute a prompt, as far as no cached prefix covers it, and return the root of a new tree.

        Args:
            prompt: text, or token ids.
            seed: keys the sampling of the whole tree, 0 to 2**64 - 1; None takes the engine's seed and the tree's
                number.

        Raises:
            InvalidArgument: the prompt is empty or holds an id outside the vocabulary, or the seed is out of range.
            ContextOverflow: it leaves no room for one token.
            OutOfPages: live nodes hold too much of the pool.
        """
        root, job = self.submit_prefill(prompt, seed=seed)
        if job is not None:
            try:
                self._run_until(job)
            except BaseException:
                root.release()
                raise
        return root

    def decode(self, nodes: Node | Sequence[Node], params: SamplingParams | None = None, **settings: Any) -> None:
        """Generate on all `nodes` as one batch until each has ended; tokens, logprobs and value are then on the nodes.

        Args:
            nodes: live nodes, each at most once.
            params: how to sample.
            **settings: fields of `SamplingParams` that replace those of `params`.

        Raises:
            NodeReleased, InvalidArgument, ContextOverflow: nothing was generated.
            GrammarError: the grammar can't be used; nothing was generated. Where it fails on one node only, that node's
                `finish_reason` is "error", its `error` tells why, and nothing is raised.
            OutOfPages: a node found no page even alone; the others were finished.
        """
        generations = self.submit(nodes, params, **settings)
        try:
            self._run_until(*generations)
        finally:
            for generation in generations:
                self.cancel(generation)

    def stream(
        self, nodes: Node | Sequence[Node], params: SamplingParams | None = None, **settings: Any
    ) -> Iterator[TokenEvent]:
        """Like `decode`, yielding each token as it comes. Closing the iterator cancels what has not ended."""
        generations = self.submit(nodes, params, **settings)
        for generation in generations:
            generation.pace = min(generation.pace, STREAM_PACE)
        mine = {generation.node for generation in generations}
        try:
            while not all(generation.done for generation in generations):
                for span in self.step().spans:
                    if span.node in mine:
                        yield from span_events(span)
            raise_first(generations)
        finally:
            for generation in generations:
                self.cancel(generation)

    def score(self, node: Node, continuation: str | Sequence[int]) -> list[float]:
        """Natural-log probability of each token of `continuation` after `node`, by one prefill over its KV.

        The tree is left as it was. A text gets no token that begins a sequence, for it goes on with one.
        """
        tokens = self.token_ids(continuation, "continuation", special=False)
        probe = self.submit_probe(node)
        self._run_until(probe)
        scores = self.first_score(probe, tokens)
        if len(tokens) > 1:
            child, job = self.submit_score(node, tokens)
            try:
                self._run_until(job)
            finally:
                child.release()
            scores += job.logprobs
        return scores

    def append(self, node: Node, continuation: str | Sequence[int]) -> Node:
        """Write given tokens below `node`, such as what a tool has answered, by one prefill over its KV.

        Args:
            node: a live node.
            continuation: text, which gets no token that begins a sequence, or token ids.

        Returns:
            A child that holds the tokens, with their natural-log probabilities and the value at its end.

        Raises:
            InvalidArgument: there is no token, or one that the vocabulary lacks.
            NodeReleased, ContextOverflow, OutOfPages: nothing was changed.
        """
        tokens = self.token_ids(continuation, "continuation", special=False)
        probe = self.submit_probe(node)
        self._run_until(probe)
        first = self.first_score(probe, tokens)
        child, job = self.submit_append(node, tokens)
        try:
            self._run_until(job)
            child.logprobs.extend([*first, *job.logprobs])
            child.finish_reason = "given"
            child.value = self.value(child)
        except BaseException:
            child.release()
            raise
        return child

    def value(self, node: Node) -> float | None:
        """The value head's estimate at the end of `node`, in [0, 1]; None where the model has no value head."""
        if not self.has_value_head:
            return None
        probe = self.submit_probe(node)
        self._run_until(probe)
        return self.probed_value(probe)

    def export_path(self, node: Node, start: int = 0, end: int | None = None) -> PathKv:
        """Copy tokens `start` .. `end` - 1 of a node's path with their KV, for `import_path` of another engine.

        Args:
            node: a live node; it may be decoding.
            start: tokens that the other engine has already.
            end: None is the end of the node.

        Raises:
            InvalidArgument: there are no such tokens, or the node is another engine's.
            NodeReleased: the node has been released.
            KvNotComputed: some of that KV is not there.
        """
        return self._exchange.pack(node, start, node.length if end is None else end)

    def import_path(self, part: PathKv, *, below: Node | None = None, seed: int | None = None) -> Node:
        """Make a node of what `export_path` gave; nothing is computed.

        Args:
            part: the node's tokens and KV.
            below: the node to continue; None makes the root of a new tree, which new prompts may find.
            seed: keys the sampling of a new tree (see `prefill`).

        Raises:
            KvFormatMismatch: it was exported from another model, or another type of KV.
            InvalidArgument: it does not begin where `below` ends, or is damaged, or the seed is out of range.
            OutOfPages: live nodes hold too much of the pool; nothing was changed.
            KvNotComputed, NodeReleased, ContextOverflow: `below` cannot be continued.
        """
        self._exchange.check(part, below)
        tokens = self.token_ids(part.tokens.tolist(), "tokens")
        node = self._root(tokens, seed) if below is None else self._child(below, tokens)
        try:
            self._exchange.fill(node, part)
        except BaseException:
            node.release()
            raise
        if below is None:
            self.cache.seal(node)
        return node

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

    # ---------------------------------------------------------------- without waiting

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
        root = self._root(self.token_ids(prompt, "prompt"), seed)
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
        """Queue nodes for decoding; `step` runs them. A higher `priority` is served first."""
        nodes = [nodes] if isinstance(nodes, Node) else list(nodes)
        base = params.model_dump() if params is not None and settings else {}
        params = checked(SamplingParams, {**base, **settings}) if settings or params is None else params
        self._check_nodes(nodes)
        self._check_params(params)
        generations = [self._generation(node, params, branch, priority) for branch, node in enumerate(nodes)]
        failed = self._constraints.begin(generations, params)
        for generation in generations:
            if generation in failed:
                self._requests.fail_alone(generation, failed[generation])
            else:
                self._requests.add(generation)
        return generations

    def submit_probe(self, node: Node) -> Generation:
        """Queue the recovery of a node's last hidden state, for `probed_value` and `first_score`."""
        self._check_nodes([node], may_run=True)
        probe = self._generation(node, SamplingParams(max_tokens=1), 0, 0.0)
        probe.probe = True
        self._requests.add(probe)
        return probe

    def submit_score(self, node: Node, tokens: Sequence[int]) -> tuple[Node, Compute]:
        """Queue a scratch child of `node` whose job gathers the log-probabilities of `tokens[1:]`; release it after."""
        child = node.fork()[0]
        child.tokens.extend(tokens[:-1])
        self._check_room(child)
        job = Compute(child, collect=list(tokens[1:]))
        self._requests.compute(job)
        return child, job

    def submit_append(self, node: Node, tokens: Sequence[int]) -> tuple[Node, Compute]:
        """Queue a child of `node` that holds `tokens`; its job gathers the log-probabilities of `tokens[1:]`."""
        child = self._child(node, tokens)
        job = Compute(child, collect=list(tokens[1:]))
        self._requests.compute(job)
        return child, job

    def token_ids(self, text: str | Sequence[int], field: str, *, special: bool = True) -> list[int]:
        """Encode a text, or check given ids; `field` is what an error calls them.

        A text gets the tokens that begin a sequence, where the model uses such, unless `special` is False.

        Raises:
            InvalidArgument: there is no token, or one that the vocabulary lacks.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise InvalidArgument(field, text, "the model folder has no tokenizer: pass token ids")
            tokens = self.tokenizer.encode(text, add_special_tokens=special)
        else:
            try:
                tokens = [operator.index(token) for token in text]
            except TypeError:
                raise InvalidArgument(field, text, "text or whole numbers, which are token ids") from None
        if not tokens:
            raise InvalidArgument(field, text, "at least one token")
        self._check_known(field, tokens)
        return tokens

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

    # ---------------------------------------------------------------- helpers

    def _root(self, tokens: list[int], seed: int | None) -> Node:
        """The root of a new tree, below what the prefix cache has of its tokens."""
        if seed is not None:
            check_whole("seed", seed, 0, _MASK)
        self._trees += 1
        key = seed if seed is not None else (self.config.seed * _SEED_STRIDE + self._trees) & _MASK
        root = self.cache.new_tree(tokens, tree_id=self._trees, seed=key, detokenize=self._detokenize)
        self._check_room(root)
        return root

    def _child(self, node: Node, tokens: Sequence[int]) -> Node:
        """A child of `node` that holds `tokens`, whose KV is still to come."""
        self._check_nodes([node], may_run=True)
        child = node.fork()[0]
        try:
            child.tokens.extend(tokens)
            self._check_room(child)
        except BaseException:
            child.release()
            raise
        return child

    def _generation(self, node: Node, params: SamplingParams, branch: int, priority: float) -> Generation:
        stops = params.stop
        eos = () if params.ignore_eos or self.tokenizer is None else self.tokenizer.eos_ids
        self._orders += 1
        return Generation(
            node=node,
            params=params,
            seed=node.tree.seed if params.seed is None else params.seed,
            branch=node.id if params.seed is None else branch,
            priority=priority,
            order=self._orders,
            stop_text=StopText(stops, self.tokenizer.stream()) if stops and self.tokenizer else None,
            stop_ids=frozenset(params.stop_token_ids).union(eos),
            counts=TokenCounts.of(node, params, self._vocabulary),
            without=Without(params.without) if params.without else None,
            pace=STOP_TEXT_PACE if stops else self.config.max_burst,
        )

    def _check_params(self, params: SamplingParams) -> None:
        """Refuse settings that this model can't follow."""
        if params.stop and self.tokenizer is None:
            raise InvalidArgument("stop", params.stop, "stop texts need a tokenizer, and the model folder has none")
        self._check_known("logit_bias", [token for token, _ in params.logit_bias])
        self._check_known("stop_token_ids", params.stop_token_ids)
        for known in params.without:
            self._check_known("without", known.tokens)

    def _check_known(self, field: str, tokens: Sequence[int]) -> None:
        """Refuse ids that the vocabulary lacks: in a step, they would fail all others too."""
        if tokens and (min(tokens) < 0 or max(tokens) >= self._vocabulary):
            raise InvalidArgument(field, tokens, f"token ids from 0 to {self._vocabulary - 1}")

    def _check_nodes(self, nodes: list[Node], *, may_run: bool = False) -> None:
        if not nodes:
            raise InvalidArgument("nodes", nodes, "at least one node")
        if len(set(nodes)) < len(nodes):
            raise InvalidArgument("nodes", [node.id for node in nodes], "each node at most once")
        for node in nodes:
            if node.tree.cache is not self.cache:
                raise InvalidArgument("nodes", node.id, "a node of this engine")
            if node.released:
                raise NodeReleased(node.tree.id, node.id)
            if not may_run and self._requests.is_busy(node):
                raise InvalidArgument("nodes", node.id, "a node that is not being decoded already")
            if node.length == 0:
                raise InvalidArgument("nodes", node.id, "a node with at least one token on its path")
            check_context(node, self.longest_context)

    def _check_room(self, node: Node) -> None:
        """Release a new node that leaves no room in the context, and say so."""
        try:
            check_context(node, self.longest_context)
        except ContextOverflow:
            node.release()
            raise

    def _detokenize(self, tokens: Sequence[int]) -> str:
        if self.tokenizer is None:
            raise InvalidArgument("text", None, "the model folder has no tokenizer")
        return self.tokenizer.decode(tokens)

    def _on_free(self, node: Node) -> None:
        if node.tip >= 0:
            self._runner.tips.release(node.tip)
            node.tip = -1
        self._requests.idle.freed(node)

    def _run_until(self, *requests: Generation | Compute) -> None:
        while not all(request.done for request in requests):
            self.step()
        raise_first(requests)
