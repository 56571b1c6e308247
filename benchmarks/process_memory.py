"""The memory of this process and of all that it has started, by Linux's /proc."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_RAY_TITLE = re.compile(r"ray::(?:ServeReplica:\w+:)?(\w+)")


@dataclass(frozen=True, slots=True)
class Memory:
    """MB (10^6 bytes) that are resident: in all, and of these what the process has allocated for itself alone.

    The rest are files that it maps, and memory that it shares, as with Ray's object store.
    """

    resident: float
    private: float


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


def memory(process: int) -> Memory | None:
    """What a process takes; None if it is gone."""
    try:
        status = (_PROC / str(process) / "status").read_text()
    except OSError:
        return None
    found = dict(re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB$", status, re.MULTILINE))
    if len(found) < 2:  # it has ended, and is not waited for yet
        return None
    return Memory(int(found["VmRSS"]) * 1024 / 1e6, int(found["RssAnon"]) * 1024 / 1e6)


def ray_role(process: int) -> str | None:
    """The class of the actor, or of the Serve deployment, that a process runs, or the program of Ray's that it is.

    None for any other process, and for one of Ray's workers that has nothing to do.
    """
    try:
        command = (_PROC / str(process) / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return None
    title = _RAY_TITLE.match(command)
    if title is not None:
        return None if title[1] == "IDLE" else title[1]
    program = command.rpartition("/")[2]
    return program if program in ("raylet", "gcs_server") else None


def _parent(entry: Path) -> int | None:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])  # after the name: state, parent
    except OSError:
        return None
