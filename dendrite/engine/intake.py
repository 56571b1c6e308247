"""From what a caller asks for to checked token ids, nodes and generations: whatever is wrong is told here, at once."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from dendrite.config import EngineConfig, SamplingParams
from dendrite.engine.generation import STOP_TEXT_PACE, Generation, TokenCounts
from dendrite.engine.paths import check_context
from dendrite.engine.requests import Requests
from dendrite.engine.stopping import StopText
from dendrite.engine.without import Without
from dendrite.errors import ContextOverflow, InvalidArgument, NodeReleased
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node
from dendrite.limits import check_whole
from dendrite.model.tokenizer import Tokenizer

_MASK = 2**64 - 1
_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, so that trees of one engine, and engines of neighbouring seeds, draw different noise."""


class Intake:
    """Makes the nodes and generations of one engine. What it refuses has changed nothing."""

    def __init__(
        self,
        cache: KvCache,
        requests: Requests,
        config: EngineConfig,
        tokenizer: Tokenizer | None,
        vocabulary: int,
        longest_context: int,
    ) -> None:
        """Take what requests are checked against.

        Args:
            cache: the nodes'.
            requests: by which busy nodes are known.
            config: the engine's.
            tokenizer: None allows token ids alone.
            vocabulary: token ids that the model knows, from 0 on.
            longest_context: tokens of the longest path.
        """
        self._cache, self._requests, self._config = cache, requests, config
        self._tokenizer, self._vocabulary, self._longest_context = tokenizer, vocabulary, longest_context
        self._orders = 0
        self._trees = 0

    def token_ids(self, text: str | Sequence[int], field: str, *, special: bool = True) -> list[int]:
        """Encode a text, or check given ids; `field` is what an error calls them.

        A text gets the tokens that begin a sequence, where the model uses such, unless `special` is False.

        Raises:
            InvalidArgument: there is no token, or one that the vocabulary lacks.
        """
        if isinstance(text, str):
            if self._tokenizer is None:
                raise InvalidArgument(field, text, "the model folder has no tokenizer: pass token ids")
            tokens = self._tokenizer.encode(text, add_special_tokens=special)
        else:
            try:
                tokens = [operator.index(token) for token in text]
            except TypeError:
                raise InvalidArgument(field, text, "text or whole numbers, which are token ids") from None
        if not tokens:
            raise InvalidArgument(field, text, "at least one token")
        self._check_known(field, tokens)
        return tokens

    def root(self, tokens: list[int], seed: int | None) -> Node:
        """The root of a new tree, below what the prefix cache has of its tokens.

        Raises:
            InvalidArgument: `seed`, which keys the tree's sampling unless it is None, is out of range.
            ContextOverflow: the tokens leave no room for another one.
        """
        if seed is not None:
            check_whole("seed", seed, 0, _MASK)
        self._trees += 1
        key = seed if seed is not None else (self._config.seed * _SEED_STRIDE + self._trees) & _MASK
        root = self._cache.new_tree(tokens, tree_id=self._trees, seed=key, detokenize=self._detokenize)
        self._check_room(root)
        return root

    def child(self, node: Node, tokens: Sequence[int]) -> Node:
        """A child of `node` that holds `tokens`, whose KV is still to come.

        Raises:
            InvalidArgument, NodeReleased, ContextOverflow: `node` cannot be continued so.
        """
        self._check_nodes([node], may_run=True)
        child = node.fork()[0]
        child.tokens.extend(tokens)
        self._check_room(child)
        return child

    def probe(self, node: Node) -> Generation:
        """What ends as soon as the last hidden state of `node`, which may be decoding, is there.

        Raises:
            InvalidArgument, NodeReleased, ContextOverflow: there is no such state.
        """
        self._check_nodes([node], may_run=True)
        probe = self._generation(node, SamplingParams(max_tokens=1), 0, 0.0)
        probe.probe = True
        return probe

    def generations(self, nodes: list[Node], params: SamplingParams, priority: float) -> list[Generation]:
        """A generation on each of `nodes`, in their order.

        Raises:
            InvalidArgument: a node cannot be decoded, or this model cannot follow the settings.
            NodeReleased, ContextOverflow: a node cannot be continued.
        """
        self._check_nodes(nodes)
        self._check_params(params)
        return [self._generation(node, params, branch, priority) for branch, node in enumerate(nodes)]

    def _generation(self, node: Node, params: SamplingParams, branch: int, priority: float) -> Generation:
        stops = params.stop
        eos = () if params.ignore_eos or self._tokenizer is None else self._tokenizer.eos_ids
        self._orders += 1
        return Generation(
            node=node,
            params=params,
            seed=node.tree.seed if params.seed is None else params.seed,
            branch=node.id if params.seed is None else branch,
            priority=priority,
            order=self._orders,
            stop_text=StopText(stops, self._tokenizer.stream()) if stops and self._tokenizer else None,
            stop_ids=frozenset(params.stop_token_ids).union(eos),
            counts=TokenCounts.of(node, params, self._vocabulary),
            without=Without(params.without) if params.without else None,
            pace=STOP_TEXT_PACE if stops else self._config.max_burst,
        )

    def _check_nodes(self, nodes: list[Node], *, may_run: bool = False) -> None:
        if not nodes:
            raise InvalidArgument("nodes", nodes, "at least one node")
        if len(set(nodes)) < len(nodes):
            raise InvalidArgument("nodes", [node.id for node in nodes], "each node at most once")
        for node in nodes:
            if node.tree.cache is not self._cache:
                raise InvalidArgument("nodes", node.id, "a node of this engine")
            if node.released:
                raise NodeReleased(node.tree.id, node.id)
            if not may_run and self._requests.is_busy(node):
                raise InvalidArgument("nodes", node.id, "a node that is not being decoded already")
            if node.length == 0:
                raise InvalidArgument("nodes", node.id, "a node with at least one token on its path")
            check_context(node, self._longest_context)

    def _check_params(self, params: SamplingParams) -> None:
        """Refuse settings that this model can't follow."""
        if params.stop and self._tokenizer is None:
            raise InvalidArgument("stop", params.stop, "stop texts need a tokenizer, and the model folder has none")
        self._check_known("logit_bias", [token for token, _ in params.logit_bias])
        self._check_known("stop_token_ids", params.stop_token_ids)
        for known in params.without:
            self._check_known("without", known.tokens)

    def _check_known(self, field: str, tokens: Sequence[int]) -> None:
        """Refuse ids that the vocabulary lacks: in a step, they would fail all others too."""
        if tokens and (min(tokens) < 0 or max(tokens) >= self._vocabulary):
            raise InvalidArgument(field, tokens, f"token ids from 0 to {self._vocabulary - 1}")

    def _check_room(self, node: Node) -> None:
        """Release a new node that leaves no room in the context, and say so."""
        try:
            check_context(node, self._longest_context)
        except ContextOverflow:
            node.release()
            raise

    def _detokenize(self, tokens: Sequence[int]) -> str:
        if self._tokenizer is None:
            raise InvalidArgument("text", None, "the model folder has no tokenizer")
        return self._tokenizer.decode(tokens)
