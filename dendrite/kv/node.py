"""A node of a generation tree: the tokens of one segment, and the way up to its ancestors."""

from __future__ import annotations

import operator
from enum import Enum
from typing import TYPE_CHECKING

from dendrite.errors import InvalidArgument, NodeReleased
from dendrite.kv.guidance import Guidance

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from dendrite.errors import DendriteError
    from dendrite.grammar.matcher import Matcher
    from dendrite.kv.tree import Tree


class NodeState(Enum):
    """Where a segment stands between its fork and the return of its pages."""

    LIVE = "live"
    """Its holder may use it."""
    HELD = "held"
    """Released, but live descendants read it."""
    CACHED = "cached"
    """Released; kept for prompts to come, until its pages are needed."""
    FREED = "freed"
    """Owns nothing any more."""


_LIVE = NodeState.LIVE


class Node:
    """One segment of a path, made by `Engine.prefill` or `fork`.

    A node reads its ancestors' KV up to position `base` and owns what follows. Forking sets a few fields, whatever the
    length, depth or number of siblings; the lists of a segment come into being when they are first touched.

    Attributes:
        tree: what the node shares with its whole tree.
        id: unique and rising within the tree; the root is 0.
        parent: whose KV the node continues. For a root, None or the node of another tree that holds a cached prefix.
        base: tokens on the path before this segment.
        tokens: ids of this segment. Only the engine appends.
        logprobs: natural-log probabilities of the generated tokens, one each; prompt tokens have none.
        computed: how many of `tokens` have their KV written.
        pages: KV pages the segment owns. The first holds page number `base // page_size` of the path.
        tip: the engine's slot of the last token's hidden state, -1 for none.
        value: the value head's estimate at the last token, in [0, 1].
        finish_reason: "stop" or "length" once a generation has ended; "error" where it alone has failed; "given" where
            the tokens were not generated but appended.
    """

    __slots__ = (
        "_children",
        "_guidance",
        "_idle",
        "_state",
        "_table",
        "base",
        "computed",
        "finish_reason",
        "id",
        "logprobs",
        "pages",
        "parent",
        "tip",
        "tokens",
        "tree",
        "value",
    )

    tree: Tree
    id: int
    parent: Node | None
    base: int
    tokens: list[int]
    logprobs: list[float]
    computed: int
    pages: list[int]
    tip: int
    value: float | None
    finish_reason: str | None
    _guidance: Guidance | None
    _children: dict[Node, None] | None  # an ordered set, so that walks repeat from run to run
    _idle: int  # how many of the children are in the state CACHED
    _state: NodeState
    _table: NDArray[np.int64] | None  # the page table with room to grow, kept by KvCache

    def __init__(self, tree: Tree, id: int, parent: Node | None, base: int) -> None:
        self.tree = tree
        self.id = id
        self.parent = parent
        self.base = base
        self.computed = 0
        self.tip = -1
        self.value = None
        self.finish_reason = None
        self._children = None
        self._idle = 0
        self._state = _LIVE
        self._table = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> list | None:
            """Make a segment's list on first touch: a fork that never runs pays for none of them."""
            if name == "_guidance":
                return None
            if name not in ("tokens", "logprobs", "pages"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            made: list = []
            setattr(self, name, made)
            return made

    def __repr__(self) -> str:
        return f"Node({self.tree.id}:{self.id}, {self._state.value}, base={self.base}, own={len(self.tokens)})"

    @property
    def guidance(self) -> Guidance:
        """What the node has of a grammar, made on first touch."""
        if self._guidance is None:
            self._guidance = Guidance()
        return self._guidance

    @property
    def grammar(self) -> Matcher | None:
        """Where the path stands in the grammar that it was last generated under; None where there was none."""
        return None if self._guidance is None else self._guidance.grammar

    @property
    def raw_logprobs(self) -> Sequence[float]:
        """Like `logprobs`, but before a grammar has taken tokens away, up to the last one generated under one."""
        return () if self._guidance is None else self._guidance.raw_logprobs

    @property
    def error(self) -> DendriteError | None:
        """What the generation has failed with, None if it hasn't."""
        return None if self._guidance is None else self._guidance.error

    @error.setter
    def error(self, error: DendriteError | None) -> None:
        if error is not None or self._guidance is not None:
            self.guidance.error = error

    @property
    def length(self) -> int:
        """Tokens on the path from its beginning to the end of this segment."""
        return self.base + len(self.tokens)

    @property
    def path_tokens(self) -> list[int]:
        """All token ids from the beginning of the path, a cached prefix included."""
        spans = [self.tokens]
        base, node = self.base, self.parent
        while node is not None and base > 0:
            if node.base < base:
                spans.append(node.tokens[: base - node.base])
                base = node.base
            node = node.parent
        return [token for span in reversed(spans) for token in span]

    @property
    def text(self) -> str:
        """This segment's tokens as text."""
        return self.tree.detokenize(self.tokens)

    @property
    def released(self) -> bool:
        """Whether the holder has given the node up."""
        return self._state is not _LIVE

    @property
    def child_count(self) -> int:
        """Children that still exist: those not released, and those that something below them keeps."""
        return len(self._children) if self._children is not None else 0

    def fork(self, n: int = 1) -> list[Node]:
        """Make `n` children that continue from the end of this segment. Copies nothing.

        Raises:
            NodeReleased: the node has been released.
            InvalidArgument: `n` is below 1.
        """
        return _fork(self, self.base + len(self.tokens), n)

    def at(self, k: int) -> ForkPoint:
        """Name the point after the first `k` of this segment's own tokens, to fork from.

        Raises:
            NodeReleased: the node has been released.
            InvalidArgument: `k` is not in 0 .. len(tokens).
        """
        if self._state is not _LIVE:
            raise NodeReleased(self.tree.id, self.id)
        limit = len(self.tokens)
        if not 0 <= _whole("k", k) <= limit:
            raise InvalidArgument("k", k, f"between 0 and {limit}, the number of the node's own tokens")
        return ForkPoint(self, k)

    def release(self, subtree: bool = False) -> None:
        """Give the node up, and with `subtree` all of its tree below it. Idempotent.

        Its pages are freed when no descendant reads them. A prompt may stay cached until its pages are needed.
        """
        if subtree:
            self.tree.cache.release_subtree(self)
        else:
            self.tree.cache.release(self)


class ForkPoint:
    """A place inside a node's segment. Making one keeps nothing alive and costs no KV."""

    __slots__ = ("k", "node")

    def __init__(self, node: Node, k: int) -> None:
        self.node = node
        self.k = k

    def __repr__(self) -> str:
        return f"{self.node!r}.at({self.k})"

    def fork(self, n: int = 1) -> list[Node]:
        """Make `n` children that continue after the first `k` tokens of the node's segment. Copies nothing.

        Raises:
            NodeReleased: the node has been released.
            InvalidArgument: `n` is below 1.
        """
        return _fork(self.node, self.node.base + self.k, n)


def _fork(parent: Node, base: int, n: int) -> list[Node]:
    tree = parent.tree
    if parent._state is not _LIVE:
        raise NodeReleased(tree.id, parent.id)
    if type(n) is not int or n < 1:
        n = _count(n)
    first = tree.next_id
    tree.next_id = first + n
    tree.cache.forks += n
    nodes = [Node(tree, id, parent, base) for id in range(first, first + n)]
    if parent._children is None:
        parent._children = dict.fromkeys(nodes)
    else:
        parent._children.update(dict.fromkeys(nodes))
    return nodes


def _count(n: int) -> int:
    if _whole("n", n) < 1:
        raise InvalidArgument("n", n, "at least 1")
    return operator.index(n)


def _whole(field: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InvalidArgument(field, value, "a whole number") from None
