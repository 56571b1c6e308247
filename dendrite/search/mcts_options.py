"""The settings of Monte Carlo tree search."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dendrite.search.algorithm import AlgorithmOptions
from dendrite.search.stats import PUCT_CONSTANT, UCT_CONSTANT, Parallel

_NEEDS: Mapping[str, tuple[tuple[str, tuple[Any, ...]], ...]] = MappingProxyType(
    {
        "root": (("mode", ("tree", "leaf")),),
        "c": (("selection", ("uct", "puct")),),
        "epsilon": (("selection", ("epsilon_greedy",)),),
        "virtual_loss": (("parallel", ("virtual_loss",)),),
        "trees": (("mode", ("root",)),),
        "rollouts": (("mode", ("leaf",)),),
        "commit": (("mode", ("tree", "leaf")), ("root", ("same",))),
        "simulations": (("root", ("gumbel",)),),
        "considered": (("root", ("gumbel",)),),
        "prune_visits": (("prune_below", ()),),
        "max_reward": (("early_stop", (True,)),),
    }
)
"""Option -> what it needs of others to have an effect: a field and its values, none of them for any but None."""


class MctsOptions(AlgorithmOptions):
    """Settings of Monte Carlo tree search.

    The defaults of `widening_k`, `widening_alpha`, `min_unseen`, `patience`, `temperature` and `greedy_first` were
    chosen on validation problems of Countdown with the packaged model, for the fewest generated tokens; widening, the
    temperature and `greedy_first` mattered most, and `c` hardly at all. They dive first and branch late: a node has
    one child until a few visits below it have told what that is worth. Where many expansions in flight matter more
    than tokens, raise `widening_k`.

    An option that has no effect with the others given is rejected.
    """

    selection: Literal["uct", "puct", "greedy", "epsilon_greedy", "improved_policy"] = "puct"
    """How a child is chosen: by a bound on its value, with the model's probability as prior or without; the highest
    mean; that, or any at all with probability `epsilon`; or by the improved policy of Gumbel MuZero."""
    parallel: Parallel = "wu_uct"
    """How selection counts visits in flight (see `dendrite.search.stats`)."""
    mode: Literal["tree", "root", "leaf"] = "tree"
    """What runs in parallel: expansions all over one tree; `trees` trees below the same root, which share nothing but
    its KV; or those of one tree, each new node of which is judged by `rollouts` rollouts at once."""
    root: Literal["same", "gumbel"] = "same"
    """How a child of the root is chosen: as everywhere, or by sequential halving of perturbed children."""
    c: Annotated[float, Field(ge=0.0, le=1_000.0)] | None = None
    """Weight of exploration; None is the square root of 2 for UCT and 1.5 for PUCT."""
    epsilon: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the choices of a child that `epsilon_greedy` makes at random, at each node on the way down."""
    virtual_loss: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """What a visit in flight is taken to return."""
    value: Literal["head", "rollout"] = "head"
    """What a new node is worth: the search's estimate (the value head's, by default), or the reward of decoding on to
    the end."""
    discount: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """What a value loses at each level that it is backed up."""
    in_flight: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most calls of the backend at a time. 1 takes the fewest tokens: each draw knows of all before it."""
    children: Annotated[int, Field(ge=1, le=4096)] = 4
    """Most children drawn in one expansion."""
    trees: Annotated[int, Field(ge=1, le=4096)] = 4
    """Trees of `mode="root"`."""
    rollouts: Annotated[int, Field(ge=1, le=4096)] = 4
    """Rollouts a new node of `mode="leaf"`, whose mean is one visit. With `value="head"` a rollout is one thought, and
    its worth the estimate there. They are started together, as far as `in_flight` allows."""
    widening_k: Annotated[float, Field(gt=0.0, le=10_000.0)] = 0.3
    widening_alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.8
    """A node of N visits may have ceil(k N^alpha) children, and more only while all it has are closed."""
    min_unseen: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """A node draws no more once the model gives anything but its children less than this probability."""
    patience: Annotated[int, Field(ge=1)] = 8
    """Nor once so many draws in a row have repeated a child."""
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 0.8
    greedy_first: bool = True
    """Whether a node's first child is the model's most likely continuation; all others are sampled. The first path
    is then the one that greedy decoding takes. Of several trees only the first has it, and a Gumbel root never."""
    commit: Annotated[int, Field(ge=1)] | None = None
    """After so many returned expansions the root moves to its most visited open child, and all beside that is given
    up; then anew. None: it stays."""
    simulations: Annotated[int, Field(ge=1)] | None = Field(default=None, validate_default=True)
    """Expansions that a Gumbel root spreads over its children before it moves to the winner; then anew."""
    considered: Annotated[int, Field(ge=1, le=4096)] = 16
    """Children that a Gumbel root draws and considers."""
    c_visit: Annotated[float, Field(ge=0.0)] = 50.0
    c_scale: Annotated[float, Field(ge=0.0)] = 1.0
    """(c_visit + visits of the most visited sibling) c_scale weighs values against log-probabilities in the improved
    policy and at a Gumbel root."""
    prune_below: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """A subtree whose mean is under this after `prune_visits` visits is given up. None: none is."""
    prune_visits: Annotated[int, Field(ge=1)] = 8
    early_stop: bool = False
    """Whether to stop, or to commit where `commit` is set, once the most visited child of the root can't be overtaken
    with the expansions left; and to stop once a reward of `max_reward` is found, or all is closed."""
    max_reward: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The highest reward that the task gives."""

    @field_validator(*_NEEDS)
    @classmethod
    def _has_an_effect(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse an option that was given where nothing would heed it."""
        if value is None or (info.field_name == "root" and value == "same"):
            return value
        for field, allowed in _NEEDS[info.field_name or ""]:
            other = info.data.get(field)
            if (other is None) if not allowed else (field in info.data and other not in allowed):
                wanted = " or ".join(f"{field}={each!r}" for each in allowed) or field
                raise ValueError(f"has an effect with {wanted} only, not with {field}={other!r}")
        return value

    @field_validator("c_visit", "c_scale")
    @classmethod
    def _weighs_something(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("root") != "gumbel" and info.data.get("selection") != "improved_policy":
            raise ValueError("has an effect with root='gumbel' or selection='improved_policy' only")
        return value

    @field_validator("simulations")
    @classmethod
    def _a_gumbel_root_needs_a_number(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None and info.data.get("root") == "gumbel":
            raise ValueError("root='gumbel' needs a number of expansions to spread")
        return value

    @property
    def exploration(self) -> float:
        """The weight of exploration in use."""
        if self.c is not None:
            return self.c
        return UCT_CONSTANT if self.selection == "uct" else PUCT_CONSTANT
