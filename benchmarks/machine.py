"""What a figure was measured on: the device's short name, its copy bandwidth, and the life of this process."""

from __future__ import annotations

import gc
import os
import re
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_COPIES = 10


def hardware_name(device: torch.device) -> str:
    """Short name for result files: `cpu`, `h100`, `h200`; for other GPUs their name in one word."""
    if device.type != "cuda":
        return device.type
    name = torch.cuda.get_device_name(device).lower()
    known = re.search(r"\b[a-z]{1,2}\d{2,3}\b", name)
    return known.group() if known else re.sub(r"\W+", "-", name)


def synchronize(device: torch.device) -> None:
    """Wait for all work that was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release_memory(device: torch.device) -> None:
    """Give back what is not referenced any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a large copy within the device's memory, bytes read and written both counted; median of several."""
    size = (1 << 30) if device.type == "cuda" else (64 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = []
    for _ in range(_COPIES):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    del source, target
    release_memory(device)  # an engine takes what it finds free
    return 2 * size / statistics.median(seconds) / 1e9


def seconds_alive() -> float:
    """Seconds since this process began, before Python was loaded (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), in ticks after boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def installed(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `packages` that are there, to name their versions."""
    found = []
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return tuple(found)
