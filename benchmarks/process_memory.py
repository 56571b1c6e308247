"""The memory of this process and of all that it has started, by Linux's /proc, and what allocators have given out."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_BLOCK_BYTES = 100
"""Counted for each block of Python's own allocator, which tells their number only."""
_RAY_TITLE = re.compile(r"ray::(?:ServeReplica:\w+:)?(\w+)")


@dataclass(frozen=True, slots=True)
class Memory:
    """MB (10^6 bytes) that are resident: in all, and of these what the process has allocated for itself alone.

    The rest are files that it maps, and memory that it shares, as with Ray's object store.
    """

    resident: float
    private: float


_MALLINFO_FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class _MallInfo(ctypes.Structure):
    """The answer of mallinfo2(3)."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO_FIELDS)


def allocated() -> float:
    """MB that this process has asked for and not given back, by glibc's malloc and Python's allocator on top.

    What either keeps for later is not of it, so that it goes down where memory that is resident stays; nor is garbage,
    which is collected first.
    """
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    found = mallinfo()
    return float(found.uordblks + found.hblkhd + _BLOCK_BYTES * sys.getallocatedblocks()) / 1e6


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
