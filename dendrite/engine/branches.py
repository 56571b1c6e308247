"""Nodes of an engine as the callers of a backend see them."""

from __future__ import annotations

from dendrite.kv.node import Node
from dendrite.search.backend import Branch, TopLogprobs


def branch_of(node: Node, *, readable: bool, top_logprobs: tuple[TopLogprobs, ...] = ()) -> Branch:
    """What a node holds by now; its text only if `readable`, which takes a tokenizer."""
    return Branch(
        node=node,
        tokens=tuple(node.tokens),
        text=node.text if readable else "",
        logprobs=tuple(node.logprobs),
        value=node.value,
        finish_reason=node.finish_reason or "cancelled",
        pages=len(node.pages),
        top_logprobs=top_logprobs,
        raw_logprobs=_raw_logprobs(node),
        error=node.error,
    )


def _raw_logprobs(node: Node) -> tuple[float, ...]:
    """The model's own log-probabilities of all generated tokens of a node; empty if a grammar touched none."""
    raw = node.raw_logprobs
    return (*raw, *node.logprobs[len(raw) :]) if raw else ()
