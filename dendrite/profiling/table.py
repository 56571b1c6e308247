"""A profile as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from dendrite.profiling.recorder import Kind, Row
from dendrite.profiling.report import KindTimes, Profile, Quantity

_NAMES: dict[Row, str] = {
    "schedule": "schedule",
    "launch": "launch",
    "device": "device",
    "sample": "sample",
    "post": "post-process",
}


def tables(profile: Profile) -> Iterator[Table | str]:
    """What to print, in order: the workload, then phases and operators of each kind of step."""
    sizes = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in profile.sizes.items())
    yield f"{profile.workload} ({sizes}) of {profile.model} on {profile.device}"
    share = profile.seconds_outside / profile.seconds
    yield f"{profile.runs} runs in {profile.seconds:.2f} s, {share:.1%} of it between steps"
    for kind, times in profile.kinds.items():
        yield _phases(kind, times)
    for kind, rows in profile.operators.items():
        table = Table(title=f"{kind}: longest operators, {profile.traced[kind]} steps traced", title_justify="left")
        table.add_column("operator", overflow="ellipsis", no_wrap=True)
        for heading in ("µs/step", "calls/step", "share"):
            table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading) + 2)
        for row in rows:
            table.add_row(row.name, f"{row.us_per_step:,.1f}", f"{row.calls_per_step:,.1f}", f"{row.share:.1%}")
        yield table


def _phases(kind: Kind, times: KindTimes) -> Table:
    bursts = "" if times.calls == times.steps else f" in {times.calls} bursts"
    title = f"{kind}: {times.steps} steps{bursts}, {times.rows:.1f} rows"
    table = Table("phase", title=title, title_justify="left")
    for heading in ("mean µs", "p50 µs", "p99 µs", "share"):
        table.add_column(heading, justify="right")
    for row, quantity in times.phases.items():
        table.add_row(*_cells(_NAMES[row], quantity))
    table.add_section()
    table.add_row(*_cells("whole step", times.whole))
    if times.gpu is not None:
        table.add_row(*_cells("GPU", times.gpu))
    return table


def _cells(name: str, quantity: Quantity) -> tuple[str, ...]:
    microseconds = (quantity.mean_us, quantity.p50_us, quantity.p99_us)
    return (name, *(f"{value:,.1f}" for value in microseconds), f"{quantity.share:.1%}")
