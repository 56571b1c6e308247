"""`dendrite replay`, `dendrite view`, `dendrite export`: what can be done with the trace of a search."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from dendrite.commands.files import check_folder
from dendrite.commands.group import fail
from dendrite.errors import InvalidArgument
from dendrite.search.exports import to_graphviz
from dendrite.search.packed import pack
from dendrite.search.replay import replay as replay_search
from dendrite.search.trace_file import read_trace
from dendrite.search.trace_tree import TraceNode, TraceTree
from dendrite.viewer.page import render

Traces = Annotated[list[Path], typer.Argument(help="Traces, as `--traces` and `run_search(trace=…)` write them.")]


class Format(StrEnum):
    """What `export` writes."""

    dot = "dot"
    npz = "npz"


def replay(
    trace: Annotated[Path, typer.Argument(help="A trace, as `run_search(trace=…)` writes it.")],
    nodes: Annotated[int, typer.Option(min=0, help="Most nodes of the tree to print: those of the most visits.")] = 40,
) -> None:
    """Run a search again from its trace alone, without a model, and print its tree.

    Every decision of the algorithm is made anew. Exits with 1 if the result is not the one on record.
    """
    tree = read_trace(trace)
    result = asyncio.run(replay_search(trace))
    console = Console()
    for printed in _printed(tree, nodes):
        console.print(printed)
    console.print(
        f"{result.algorithm} on {result.task}: {result.stop_reason}, reward {result.reward:g}, "
        f"{result.expansions} expansions, {result.nodes} nodes, {result.tokens} tokens",
        highlight=False,
        soft_wrap=True,
    )
    if tree.result is None:
        console.print("the trace ends before its search does")
        return
    recorded = tree.result.model_dump()
    told = {name: value for name, value in result.to_dict().items() if name != "seconds"}
    differing = [name for name, value in told.items() if recorded.get(name, value) != value]
    if differing:
        fail(f"the replay differs from the trace in {', '.join(differing)}", 1)
    console.print("the replay agrees with the trace")


def view(
    traces: Traces,
    out: Annotated[Path, typer.Option(help="HTML file to write, replaced if there.")] = Path("trace.html"),
) -> None:
    """Write one HTML page that shows searches: their trees, timelines and replays. It needs no network."""
    check_folder("out", out)
    render(traces, out)
    typer.echo(f"written to {out}")


def export(
    traces: Traces,
    form: Annotated[Format, typer.Option("--format", help="dot: Graphviz, of one trace; npz: packed token trees.")],
    out: Annotated[Path, typer.Option(help="File to write, replaced if there.")],
    top: Annotated[int | None, typer.Option(min=1, help="Most nodes of a Graphviz drawing.")] = None,
) -> None:
    """Write traces in the format of other tools."""
    check_folder("out", out)
    trees = [read_trace(trace) for trace in traces]
    if form is Format.npz:
        if top is not None:
            raise InvalidArgument("top", top, "goes with --format dot")
        pack(trees).save(out)
    elif len(trees) > 1:
        raise InvalidArgument("traces", len(trees), "a Graphviz file holds one trace")
    else:
        out.write_text(to_graphviz(trees[0], top=top), encoding="utf-8")
    typer.echo(f"written to {out}")


def _printed(tree: TraceTree, most: int) -> list[Tree]:
    """The nodes of the most visits as trees to print, one for each prompt that is among them."""
    ranked = sorted(tree.nodes.values(), key=lambda node: (-node.visits, node.id))
    shown = {node.id for node in ranked[:most]}
    printed: dict[int, Tree] = {}
    for node in sorted(tree.nodes.values(), key=lambda node: node.id):
        if node.id not in shown:
            continue
        above = printed.get(node.parent) if node.parent is not None else None
        label = Text.assemble((_line(node), "bold" if node.solved else ""), (f"  {_figures(node)}", "dim"))
        printed[node.id] = above.add(label) if above is not None else Tree(label)
    return [printed[root.id] for root in tree.roots if root.id in shown]


def _line(node: TraceNode) -> str:
    if node.parent is None:
        return "prompt"
    return " ".join(node.text.split()) or "(end)"


def _figures(node: TraceNode) -> str:
    parts = [f"{node.visits} visits"] if node.visits else []
    if node.reward is not None:
        parts.append(f"reward {node.reward:g}")
    elif node.value is not None:
        parts.append(f"value {node.value:.2f}")
    return ", ".join(parts)
