"""What a soak does, and what has come of it."""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of thing to do: `weight` is how often, and `expected` are the errors that may come of it."""

    name: str
    do: Callable[[random.Random], Awaitable[None]]
    weight: float
    expected: tuple[type[Exception], ...] = ()


@dataclass
class Tally:
    """How often each kind was done, and which errors it came to; what may not happen is told in full."""

    operations: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    """The first of them."""
    unexpected_count: int = 0

    async def run(self, operation: Operation, draws: random.Random) -> None:
        """Do it once, and count what comes of it."""
        self.operations[operation.name] += 1
        try:
            await operation.do(draws)
        except operation.expected as error:
            self.note(operation.name, error)
        except Exception as error:
            self.note(operation.name, error)
            self.unexpected_count += 1
            if len(self.unexpected) < _SHOWN:
                self.unexpected.append(f"{operation.name}: {''.join(traceback.format_exception(error))[-2_000:]}")

    def note(self, name: str, error: Exception) -> None:
        """Count an error, by the kind of operation and its own type."""
        self.errors[f"{name}: {type(error).__name__}"] += 1
