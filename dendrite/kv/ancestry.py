"""Which KV a node's own rests on: what above it is not written yet, and whether something below it rests on its own."""

from __future__ import annotations

from dendrite.kv.node import Node


def pending_ancestors(node: Node) -> list[Node]:
    """Ancestors whose KV `node` continues and which is not all written, the topmost first.

    O(1) where nothing is pending. A released ancestor may be among them: it still may `reserve` and `commit`.
    """
    pending: list[Node] = []
    if node.pages:  # it could not have written on top of KV that was not there
        return pending
    base, ancestor = node.base, node.parent
    while ancestor is not None and base > 0:
        if ancestor.base < base:
            if ancestor.base + ancestor.computed < base:
                pending.append(ancestor)
            base = ancestor.base
        if ancestor.pages:  # all above it was there when it wrote; what it took over or copied, it has
            break
        ancestor = ancestor.parent
    pending.reverse()
    return pending


def droppable(node: Node) -> bool:
    """Whether no descendant has written KV on top of `node`'s own."""
    stack = [child for child in node._children or () if child.base > node.base]
    while stack:
        child = stack.pop()
        if child.pages:
            return False
        stack.extend(child._children or ())
    return True
