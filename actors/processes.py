"""Processes of this machine, by Linux's /proc."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def family(root: int | None = None) -> list[int]:
    """The ids of a process (this one if None) and of all its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            parents.setdefault(parent, []).append(int(entry.name))
    found = [root if root is not None else os.getpid()]
    for process in found:  # grows while it is walked
        found += sorted(parents.get(process, ()))
    return found


def threads(process: int) -> list[int]:
    """The ids of a process's threads; none if it is gone."""
    try:
        return sorted(int(entry.name) for entry in (_PROC / str(process) / "task").iterdir())
    except OSError:
        return []


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])  # after the name: state, parent
    except OSError:
        return None
