from __future__ import annotations

import pickle

import pytest

from dendrite import Budget, Engine, Grammar, run_search
from dendrite.errors import GrammarError
from dendrite.grammar.limits import GrammarLimits
from dendrite.search.tasks.constrained import Constrained
from dendrite.search.tasks.countdown import Countdown

GAME = Countdown((3, 7, 8, 25), target=92)
TASK = Constrained(GAME, Grammar(regex="([0-9]+ [-+*/] [0-9]+ = [0-9]+\\n){1,3}"))


def test_all_but_the_grammar_is_the_tasks() -> None:
    text = "25 + 7 = 32\n"
    for name in ("name", "prompt", "split", "max_depth", "oracle"):
        assert getattr(TASK, name) == getattr(GAME, name)
    for name in ("is_terminal", "reward", "answer", "actions", "value", "reflect"):
        assert getattr(TASK, name)(text) == getattr(GAME, name)(text)
    assert pickle.loads(pickle.dumps(TASK)) == TASK


def test_a_document_goes_on_from_thought_to_thought() -> None:
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=8192) as engine:
        result = run_search(TASK, engine, algorithm="best_of_n", budget=Budget(tokens=300), seed=2)
        assert engine.stats().pages_held == 0
    lines = result.text.splitlines()
    assert 1 <= len(lines) <= 3
    assert all(len(line.split()) == 5 for line in lines)


@pytest.mark.parametrize("algorithm", ["best_of_n", "mcts"])
def test_a_search_survives_paths_that_a_limit_ends(algorithm: str) -> None:
    task = Constrained(GAME, Grammar(regex="[0-9]*7[0-9]{60}"))
    limits = GrammarLimits(step_lexer_fuel=200)
    with Engine.from_pretrained("countdown", device="cpu", kv_tokens=8192, grammar_limits=limits) as engine:
        result = run_search(task, engine, algorithm=algorithm, budget=Budget(tokens=150), seed=2)
        assert engine.stats().pages_held == 0
    assert not result.solved
    assert result.expansions > 1


def test_a_search_that_could_not_even_begin_says_why() -> None:
    task = Constrained(GAME, Grammar(lark='start: a\na: a a | "1" |'))
    limits = GrammarLimits(step_items=1)
    with (
        Engine.from_pretrained("countdown", device="cpu", kv_tokens=8192, grammar_limits=limits) as engine,
        pytest.raises(GrammarError, match="Too many items"),
    ):
        run_search(task, engine, algorithm="best_of_n", budget=Budget(tokens=150), seed=2)
