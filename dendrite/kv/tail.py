"""Whose tail page a fork inside a page reads, and whether anybody else does.

The last, partly filled page of a fork point at `base` belongs to the node that wrote position `base - 1`. Every fork
from there reads it until its own first write, when it copies the filled slots, or takes the page over as the last
reader of a released owner. After that the page is found on the taker.
"""

from __future__ import annotations

from dendrite.errors import InvariantViolation
from dendrite.kv.node import Node, NodeState


def owner(node: Node, page_size: int) -> Node:
    """The node that holds the tail page at `node.base`, which must not be a page boundary."""
    _, holder = _find(node, page_size)
    if holder is None:
        raise InvariantViolation(f"no segment holds the page before {node!r}")
    return holder


def orphaned_writer(node: Node, page_size: int) -> Node | None:
    """The ancestor that wrote position `base - 1`, if no page above `node` holds it any more; else None."""
    writer, holder = _find(node, page_size)
    return writer if holder is None else None


def only_reader(owner: Node, node: Node, page_size: int) -> bool:
    """Whether `owner` is released and done, and `node` is the last to read the tail page at `node.base` from it.

    Looks at `owner`'s children, and below those that have not written since; ends at the first other reader.
    """
    if owner._state is not NodeState.HELD or owner.computed < len(owner.tokens):
        return False
    index = node.base // page_size
    stack = [owner]
    while stack:
        parent = stack.pop()
        copied = parent is not owner and bool(parent.pages)
        for child in reversed(parent._children or ()):  # later forks tend to write later
            if child is node or child.base <= index * page_size or (copied and child.base > parent.base):
                continue
            if child.base // page_size > index or (parent is not owner and child.base > parent.base):
                return False
            if not child.pages and child._state is NodeState.LIVE:
                return False
            stack.append(child)
    return True


def lose(node: Node, page_size: int) -> None:
    """Count tokens as not computed whose only slots were in the first page that `node` has just given up."""
    start = node.base // page_size * page_size
    while node.base > start:
        writer = orphaned_writer(node, page_size)
        if writer is None:
            return
        writer.computed = max(0, start - writer.base)
        node = writer


def _find(node: Node, page_size: int) -> tuple[Node | None, Node | None]:
    """The ancestor that wrote position `base - 1`, and the one that holds its page now (None: nobody above `node`)."""
    index = node.base // page_size
    holder: Node | None = None
    ancestor = node.parent
    while ancestor is not None and ancestor.base == node.base:
        if ancestor.pages:
            holder = ancestor  # the topmost: the one that took the page over
        ancestor = ancestor.parent
    if ancestor is not None and index - ancestor.base // page_size < len(ancestor.pages):
        holder = ancestor
    return ancestor, holder
