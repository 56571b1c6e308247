"""Search with a rule of one's own: Countdown, with at most one multiplication.

A task states the prompt, where a thought ends, when a text can no longer change its reward, and the reward. The search
sees nothing else of the problem.

    python examples/search.py
"""

from __future__ import annotations

from dendrite import Budget, Engine, run_search
from dendrite.search.task import Task
from dendrite.search.tasks.countdown import Countdown


class Frugal(Task):
    """Countdown in which a second multiplication ends the game."""

    def __init__(self, numbers: tuple[int, ...], target: int) -> None:
        self._game = Countdown(numbers, target)
        self.name = f"frugal {self._game.name}"
        self.prompt = self._game.prompt
        self.stop = ("\n",)
        self.max_step_tokens = self._game.max_step_tokens
        self.max_depth = self._game.max_depth

    def is_terminal(self, text: str) -> bool:
        return text.count("*") > 1 or self._game.is_terminal(text)

    def reward(self, text: str) -> float:
        return 0.0 if text.count("*") > 1 else self._game.reward(text)

    def answer(self, text: str) -> str | None:
        return self._game.answer(text)


def main() -> None:
    engine = Engine.from_pretrained("countdown")
    task = Frugal((3, 7, 8, 25), target=92)
    result = run_search(task, engine, algorithm="mcts", budget=Budget(tokens=4_000, seconds=20), seed=0)
    print(f"{task.name}: {'solved' if result.solved else 'not solved'} in {result.seconds:.1f} s, {result.answer}")
    print(f"{result.expansions} expansions, {result.tokens} tokens")
    engine.close()


if __name__ == "__main__":
    main()
