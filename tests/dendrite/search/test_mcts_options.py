from __future__ import annotations

import math
from typing import Any

import pytest

from dendrite.config import checked
from dendrite.errors import InvalidArgument
from dendrite.search.mcts_options import MctsOptions
from dendrite.search.stats import PUCT_CONSTANT


@pytest.mark.parametrize(
    ("field", "value", "others"),
    [
        ("c", 1.0, {"selection": "greedy"}),
        ("c", 1.0, {"selection": "epsilon_greedy"}),
        ("c", 1.0, {"selection": "improved_policy"}),
        ("epsilon", 0.2, {}),
        ("virtual_loss", 0.0, {}),
        ("virtual_loss", 0.0, {"parallel": "none"}),
        ("trees", 2, {}),
        ("trees", 2, {"mode": "leaf"}),
        ("rollouts", 2, {}),
        ("rollouts", 2, {"mode": "root"}),
        ("commit", 5, {"mode": "root"}),
        ("commit", 5, {"root": "gumbel", "simulations": 8}),
        ("root", "gumbel", {"mode": "root", "simulations": 8}),
        ("simulations", 8, {}),
        ("considered", 8, {}),
        ("c_visit", 50.0, {}),
        ("c_scale", 1.0, {}),
        ("prune_visits", 3, {}),
        ("max_reward", 0.9, {}),
    ],
)
def test_an_option_without_an_effect_is_refused_by_name(field: str, value: Any, others: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="effect") as caught:
        checked(MctsOptions, {field: value, **others})
    assert caught.value.field == field


def test_a_gumbel_root_needs_to_know_how_many_expansions_it_has() -> None:
    with pytest.raises(InvalidArgument, match="gumbel") as caught:
        checked(MctsOptions, {"root": "gumbel"})
    assert caught.value.field == "simulations"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"selection": "uct", "c": 0.0},
        {"selection": "epsilon_greedy", "epsilon": 0.5},
        {"parallel": "virtual_loss", "virtual_loss": 0.2, "selection": "greedy"},
        {"mode": "root", "trees": 3, "selection": "improved_policy", "c_scale": 0.1},
        {"mode": "leaf", "rollouts": 3, "commit": 4},
        {"root": "gumbel", "simulations": 8, "considered": 4, "c_visit": 10.0, "mode": "leaf"},
        {"prune_below": 0.1, "prune_visits": 3, "early_stop": True, "max_reward": 0.5, "root": "same"},
    ],
)
def test_what_fits_together_is_taken(given: dict[str, Any]) -> None:
    options = checked(MctsOptions, given)
    assert given.items() <= options.model_dump().items()
    assert hash(options) == hash(checked(MctsOptions, given))


@pytest.mark.parametrize(
    ("field", "value"),
    [("discount", 0.0), ("discount", 1.1), ("commit", 0), ("prune_below", 0.0), ("selection", "best"), ("mode", "x")],
)
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        checked(MctsOptions, {field: value})
    assert caught.value.field == field


def test_the_weight_of_exploration() -> None:
    assert MctsOptions(selection="uct").exploration == math.sqrt(2)
    assert MctsOptions(selection="uct", c=0.3).exploration == 0.3
    assert MctsOptions().exploration == PUCT_CONSTANT == 1.5
    assert MctsOptions(c=0.5).exploration == 0.5
