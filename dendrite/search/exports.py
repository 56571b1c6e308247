"""A traced tree in the formats of other tools: Graphviz."""

from __future__ import annotations

from typing import Final

from dendrite.errors import InvalidArgument
from dendrite.search.trace_tree import TraceNode, TraceTree

_LABEL_LIMIT: Final = 48
_OPEN, _UNSEEN, _FAILED, _SOLVED = "#ffffff", "#e8eaed", "#f6dcd8", "#cfead9"


def to_graphviz(trace: TraceTree, *, top: int | None = None) -> str:
    """Draw the tree of thoughts as a DOT digraph, left to right.

    A node shows its text, visits, mean backed-up value and own value, in rounded corners where nothing has ended it;
    green is solved, red an end without a full reward, grey an end whose reward the search did not see, and a dashed
    outline a node whose KV has been released. An edge is as wide as its share of the root's visits.

    Args:
        trace: What `read_trace` has read.
        top: Draw no more than so many nodes: those of the most visits, the first among equals. None hangs in the air,
            for a node has no more visits than its parent and came after it.

    Raises:
        InvalidArgument: `top` is not a positive number.
    """
    if top is not None and top < 1:
        raise InvalidArgument("top", top, "must be at least 1")
    ranked = sorted(trace.nodes.values(), key=lambda node: (-node.visits, node.id))
    nodes = sorted(ranked[:top], key=lambda node: node.id)
    lines = [
        "digraph search {",
        f"  graph [rankdir=LR, nodesep=0.12, ranksep=0.5, tooltip={_quote(trace.header.algorithm)}];",
        '  node [shape=box, fontname="Helvetica", fontsize=10, margin="0.12,0.06", color="#5f6b7a"];',
        '  edge [color="#9aa5b1", arrowhead=none];',
        *(f"  n{node.id} [{_attributes(trace, node)}];" for node in nodes),
        *(
            f"  n{node.parent} -> n{node.id} [penwidth={_width(trace, node):.2f}];"
            for node in nodes
            if node.parent is not None
        ),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _attributes(trace: TraceTree, node: TraceNode) -> str:
    styles = ["filled", *([] if node.ended else ["rounded"]), *(["dashed"] if node.released else [])]
    text = trace.header.task.prompt if node.id == 0 else node.text
    label = f"{_shorten(text)}\n{_figures(node)}"
    return f'label={_quote(label)}, tooltip={_quote(text)}, style="{",".join(styles)}", fillcolor="{_colour(node)}"'


def _figures(node: TraceNode) -> str:
    figures = [f"{node.visits} visit{'' if node.visits == 1 else 's'}"]
    for name in ("mean", "value", "reward"):
        figure = getattr(node, name)
        if figure is not None:
            figures.append(f"{name} {figure:.3f}")
    return ", ".join(figures)


def _colour(node: TraceNode) -> str:
    if not node.ended:
        return _OPEN
    if node.reward is None:
        return _UNSEEN
    return _SOLVED if node.solved else _FAILED


def _width(trace: TraceTree, node: TraceNode) -> float:
    return 0.5 + 3.5 * node.visits / max(1, *(root.visits for root in trace.roots))


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LABEL_LIMIT else line[: _LABEL_LIMIT - 1] + "…"


def _quote(text: str) -> str:
    """A DOT string: backslashes and HTML entities would be taken for escapes, and a NUL ends the file."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}").replace("&", "&amp;").replace("\\", "\\\\")
    return '"' + text.replace('"', '\\"').replace("\r", " ").replace("\n", "\\n") + '"'
