"""One offline HTML page that shows traced searches: their trees, timelines and replays.

Everything is inline: D3 (7.9.2, https://d3js.org, under the licence in `assets/d3.LICENSE.txt`), the page's own code,
and the traces. The page's policy forbids every request, and every script but these.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from dendrite.errors import InvalidArgument
from dendrite.files import replace
from dendrite.search.trace_file import read_trace
from dendrite.search.trace_tree import TraceTree

_PARTS = (
    "dom",
    "trace",
    "layout",
    "paint",
    "canvas",
    "minimap",
    "summary",
    "filter",
    "timeline",
    "replay",
    "detail",
    "stage",
    "viewer",
)


def render(traces: Sequence[Path | str], out: Path | str) -> None:
    """Write a page of one or more traces, in the place of what is at `out`, or not at all.

    Args:
        traces: Files of traces; more than one get a selector, which names them by their files.
        out: The page to write.

    Raises:
        InvalidArgument: There are no traces.
        TraceError: A file is not a trace that this version reads.
    """
    if not traces:
        raise InvalidArgument("traces", traces, "must name at least one file")
    replace(Path(out), _page([read_trace(path) for path in traces]).encode())


def viewer_script() -> str:
    """The viewer's code without D3, which it needs: a script that defines `DendriteViewer(element, events)`."""
    return closed_script("\n".join(_asset(f"{part}.js") for part in _PARTS))


def viewer_style() -> str:
    """The viewer's style sheet."""
    return _asset("viewer.css")


def d3_script() -> str:
    """D3, as its authors distribute it."""
    return _asset("d3.min.js")


def _page(traces: Sequence[TraceTree]) -> str:
    style, d3 = viewer_style(), d3_script()
    viewer = viewer_script() + closed_script(_asset("page.js"))
    policy = (
        f"default-src 'none'; script-src {digest(d3)} {digest(viewer)}; style-src {digest(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = "[" + ",".join(_data(trace) for trace in traces) + "]"
    fields = {"policy": policy, "style": style, "d3": d3, "viewer": viewer, "traces": data}
    return re.sub("%([a-z0-9]+)%", lambda match: fields[match.group(1)], _asset("page.html"))


def _data(trace: TraceTree) -> str:
    """A trace as JSON that no reader of HTML takes for markup."""
    events = ",".join(event.model_dump_json(by_alias=True) for event in trace.events)
    text = f'{{"name":{json.dumps(Path(trace.file).name)},"events":[{events}]}}'
    return text.replace("<", "\\u003c")


def closed_script(script: str) -> str:
    """A script whose names are its own."""
    return f'(() => {{\n"use strict";\n{script}\n}})();\n'


def digest(content: str) -> str:
    """A source expression of Content Security Policy: the one inline text that is allowed."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("dendrite.viewer").joinpath("assets", name).read_text(encoding="utf-8")
