"""What a node has of a grammar that it was generated under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dendrite.errors import DendriteError
    from dendrite.grammar.matcher import Matcher


@dataclass(slots=True, eq=False)
class Guidance:
    """See the properties of `Node` that have these names. Apart from the node, so that others pay a single field."""

    grammar: Matcher | None = None
    raw_logprobs: list[float] = field(default_factory=list)
    error: DendriteError | None = None
