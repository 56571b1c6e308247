"""What is profiled: W1, W2 or W3, in sizes that the model has room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dendrite.errors import InvalidArgument
from dendrite.profiling.workloads import Figures, Prompts, Sizes, TreeEngine, Workload, w1, w2, w3

_DESIGN = Sizes()
DEFAULTS: dict[str, dict[str, int]] = {
    "W1": {"prompt": _DESIGN.w1_prompt, "tokens": _DESIGN.w1_tokens},
    "W2": {"prompt": _DESIGN.w2_prompt, "tokens": _DESIGN.w2_tokens, "branches": 64},
    "W3": {
        "prompt": _DESIGN.w3_prompt,
        "tokens": _DESIGN.w3_tokens,
        "expansions": _DESIGN.w3_expansions,
        "in_flight": 1,
    },
}
"""The sizes of each workload: tokens of the prompt, tokens of each generation, and how many of those."""
MOST_EXPANSIONS = 4_096
_W3_LEVELS = 32
"""The longest path of W3 in a hundred draws of that many expansions; 256 make 20."""


@dataclass(frozen=True, slots=True)
class Load:
    """A workload and its sizes."""

    name: str
    sizes: dict[str, int]

    @classmethod
    def of(cls, name: str, given: Mapping[str, int | None], context: int) -> Load:
        """The workload of that name in the sizes given, elsewhere in its own, cut to what the context holds.

        Args:
            name: a key of `DEFAULTS`.
            given: sizes by name; None takes the default.
            context: tokens of the model's longest path.

        Raises:
            InvalidArgument: the name or a size is not one of the workload's, or the context can't hold them.
        """
        if name not in DEFAULTS:
            raise InvalidArgument("workload", name, f"must be one of {', '.join(DEFAULTS)}")
        sizes, chosen = dict(DEFAULTS[name]), {size: value for size, value in given.items() if value is not None}
        for size, value in chosen.items():
            if size not in sizes:
                raise InvalidArgument(size, value, f"is no size of {name}, which has {', '.join(sizes)}")
            if value < 1:
                raise InvalidArgument(size, value, "at least 1")
            if size == "expansions" and value > MOST_EXPANSIONS:
                raise InvalidArgument(size, value, f"at most {MOST_EXPANSIONS}")
        sizes["prompt"] = min(sizes["prompt"], context // 2)
        sizes |= chosen
        levels = min(sizes.get("expansions", 1), _W3_LEVELS)
        room = (context - sizes["prompt"]) // levels
        if room < 1:
            raise InvalidArgument("prompt", sizes["prompt"], f"at most {context - levels}, with a context of {context}")
        if "tokens" not in chosen:
            sizes["tokens"] = min(sizes["tokens"], room)
        if sizes["tokens"] > room:
            limit = f"at most {room} for {levels} after one another, with the prompt in a context of {context}"
            raise InvalidArgument("tokens", sizes["tokens"], limit)
        return cls(name, sizes)

    @property
    def widest(self) -> int:
        """Nodes that decode at a time, at most."""
        return self.sizes.get("branches", self.sizes.get("in_flight", 1))

    def run(self, engine: TreeEngine, prompts: Prompts) -> Figures:
        """Run the workload once."""
        lengths: dict[str, Any] = {
            f"{self.name.lower()}_{size}": value
            for size, value in self.sizes.items()
            if size in ("prompt", "tokens", "expansions")
        }
        works: dict[str, Workload] = {"W1": w1, "W2": partial(w2, self.widest), "W3": partial(w3, self.widest)}
        return works[self.name](engine, prompts, Sizes(**lengths))
