"""Beam search a step at a time: of the next lines drawn, the four that the value head likes best go on.

The search's trace is then read, to show what each level drew and what went on. Run it with `python examples/beam.py`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from dendrite import Budget, Engine, run_search
from dendrite.search.result import SearchResult
from dendrite.search.tasks.countdown import Countdown
from dendrite.search.trace_file import read_trace
from dendrite.search.trace_tree import TraceNode, TraceTree

TASK = Countdown((3, 7, 8, 25), target=92)
SHOWN = 6


def rank(node: TraceNode) -> tuple[float, bool]:
    """What the beam sorts by: the reward of an end, else the value."""
    return (node.reward if node.ended else node.value) or 0.0, bool(node.children)


def show_levels(trace: TraceTree) -> None:
    """Print the best lines of each level, with an arrow where they went on before the search had found an answer."""
    for depth in range(1, 1 + max(node.depth for node in trace.nodes.values())):
        level = sorted((node for node in trace.nodes.values() if node.depth == depth), key=rank)
        lines = {(node.parent, node.text): node for node in level}  # what was drawn twice counts once
        print(f"step {depth}: {len(lines)} different lines")
        for node in sorted(lines.values(), key=rank, reverse=True)[:SHOWN]:
            mark = "->" if node.children else ""
            print(f"  {mark:2}  {'reward' if node.ended else 'value'} {rank(node)[0]:.2f}  {node.text.rstrip()}")


def main() -> SearchResult:
    """Search, and show the beam's levels and the answer."""
    budget = Budget(tokens=4_000)
    with TemporaryDirectory() as folder, Engine.from_pretrained("countdown") as engine:
        trace = Path(folder) / "beam.jsonl"
        result = run_search(
            TASK, engine, algorithm="beam", budget=budget, seed=1, width=4, branches=8, score="value", trace=trace
        )
        show_levels(read_trace(trace))
    print(f"{'solved' if result.solved else 'not solved'}: {result.answer}, with {result.tokens} tokens")
    return result


if __name__ == "__main__":
    main()
