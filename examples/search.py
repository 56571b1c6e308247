"""Search with a rule of one's own: Countdown, with at most one multiplication.

A task states its prompt, where a thought ends, when a text can no longer change its reward, and the reward;
the search sees nothing else of the problem. Run it with `python examples/search.py`.
"""

from __future__ import annotations

from dendrite import Budget, Engine, run_search
from dendrite.search.result import SearchResult
from dendrite.search.task import Task
from dendrite.search.tasks.countdown import Countdown

GAME = Countdown((3, 7, 8, 25), target=92)


class Frugal(Task):
    """Countdown in which a second multiplication loses the game."""

    name = "one multiplication at most"
    prompt = GAME.prompt
    split = GAME.split
    max_depth = GAME.max_depth

    def is_terminal(self, text: str) -> bool:
        return text.count("*") > 1 or GAME.is_terminal(text)

    def reward(self, text: str) -> float:
        return 0.0 if text.count("*") > 1 else GAME.reward(text)

    def answer(self, text: str) -> str | None:
        return GAME.answer(text)


def main() -> SearchResult:
    """Search; return what was found."""
    engine = Engine.from_pretrained("countdown")
    budget = Budget(tokens=4_000, seconds=20)
    result = run_search(Frugal(), engine, algorithm="mcts", budget=budget, seed=0)
    print(result.text, end="")
    print(f"{'solved' if result.solved else 'not solved'}: {result.answer}")
    print(f"{result.expansions} expansions, {result.tokens} tokens, {result.seconds:.1f} s")
    engine.close()
    return result


if __name__ == "__main__":
    main()
