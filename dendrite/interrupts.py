"""Ctrl-C at a better time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while something is done that must not be left half done, then let it take effect.

    Does nothing outside the main thread, where no interrupt arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = False

    def hold(signal_number: int, frame: FrameType | None) -> None:
        nonlocal held
        held = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
