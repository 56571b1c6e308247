"""The engine: nodes in, tokens out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dendrite.config import EngineConfig, SamplingParams, checked
from dendrite.engine.core import EngineCore
from dendrite.engine.device import choose_device, choose_dtype
from dendrite.engine.generation import STREAM_PACE, Compute, Generation, raise_first
from dendrite.engine.stepper import TokenEvent, span_events
from dendrite.errors import InvalidArgument
from dendrite.kv.node import Node
from dendrite.kv.path_kv import PathKv
from dendrite.model.decoder import Decoder
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer
from dendrite.model.value_head import ValueHead
from dendrite.parallel.local import form_group
from dendrite.quant.kv_scales import read_kv_scales

if TYPE_CHECKING:
    from dendrite.parallel.leader import Followers


class Engine(EngineCore):
    """A model, its KV cache, and the trees that live in it.

    Not thread-safe: one thread makes all calls (`AsyncEngine` serves many callers). A node may be forked at any time,
    also between the tokens of `stream`. Use as a context manager, or call `close`.

    With a `leader`, the decoder is rank 0's part of a model that a tensor-parallel group shares: all that this class
    holds is on rank 0, and the runner has the other ranks do what it does.
    """

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
        """Like `decode`, yielding each token as it comes. Closing the iterator cancels what has not ended.

        Nothing is queued, and no argument checked, before the first token is asked for.
        """
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

        Raises:
            InvalidArgument: there is no token, or one that the vocabulary lacks.
            NodeReleased, ContextOverflow, OutOfPages: `node` cannot be continued so.
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
        """The value head's estimate at the end of `node`, in [0, 1]; None where the model has no value head.

        Raises:
            NodeReleased, InvalidArgument, ContextOverflow, OutOfPages: the node's hidden state is not to be had.
        """
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
            InvalidArgument: it does not begin where `below` ends, or is damaged, or the seed is out of range, or given
                together with `below`.
            OutOfPages: live nodes hold too much of the pool; nothing was changed.
            KvNotComputed, NodeReleased, ContextOverflow: `below` cannot be continued.
        """
        if below is not None and seed is not None:
            raise InvalidArgument("seed", seed, "None with `below`: a node draws by the seed of its tree")
        self._exchange.check(part, below)
        tokens = self.token_ids(part.tokens.tolist(), "tokens")
        node = self._intake.root(tokens, seed) if below is None else self._intake.child(below, tokens)
        try:
            self._exchange.fill(node, part)
        except BaseException:
            node.release()
            raise
        if below is None:
            self.cache.seal(node)
        return node

    def _run_until(self, *requests: Generation | Compute) -> None:
        while not all(request.done for request in requests):
            self.step()
        raise_first(requests)
