"""An agent with a tool, whose alternatives are forks: the best of them goes on, and a dead end costs one look back.

The model proposes what to compute, a calculator computes. A grammar holds the model to a call such as `25*4=`; what the
calculator answers, `100 (8 100)`, is appended to the branch, without computing the rest of it again. Each place is
forked into several calls, the value head judges what came of them, and the agent goes on from the best place that it
has, which may be an earlier one. Run it with `python examples/agent.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from heapq import heappop, heappush

from dendrite import Engine, Grammar, Node
from dendrite.search.tasks.countdown import Countdown, problems

CALL = Grammar(regex="[1-9][0-9]{0,4}[-+*/][1-9][0-9]{0,4}=")
TASKS = tuple(problems(8, seed=3))
WIDTH, MOST_ROUNDS = 8, 12


def calculator(call: str, numbers: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The tool: the result of a call such as `25*4=`, and the numbers left once its operands are used.

    Raises:
        ValueError: an operand is not among `numbers`, or the result is no whole number from 0 on.
    """
    first, operator, second = re.split(r"([-+*/])", call.removesuffix("="))
    a, b, left = int(first), int(second), list(numbers)
    left.remove(a)
    left.remove(b)
    if (operator == "-" and a < b) or (operator == "/" and a % b):
        raise ValueError(f"{call} has no whole result from 0 on")
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    return result, tuple(sorted([*left, result]))


def work(engine: Engine, task: Countdown, root: Node) -> str:
    """Work on a problem below its prompt, a few rounds of forks; what was written if it solves it, else nothing."""
    places: list[tuple[float, int, Node, tuple[int, ...], str]] = [(-1.0, 0, root, task.numbers, "")]
    for _ in range(MOST_ROUNDS):
        worth, _, node, numbers, written = heappop(places)
        forks = node.fork(WIDTH)
        engine.decode(forks, max_tokens=12, grammar=CALL, temperature=1.0)
        for call, fork in {fork.text: fork for fork in forks}.items():
            try:
                result, left = calculator(call, numbers)
            except ValueError:
                continue
            line = f"{call}{result} ({' '.join(map(str, left))})\n"
            if left == (task.target,):
                return written + line
            if len(left) > 1:
                after = engine.append(fork, line.removeprefix(call))
                heappush(places, (-(after.value or 0.0), after.id, after, left, written + line))
        heappush(places, (worth / 4, node.id, node, numbers, written))  # it may be worth another look, later
    return ""


def main(tasks: Sequence[Countdown] = TASKS) -> tuple[int, int]:
    """Solve some problems; return how many the agent solved, and how many the model alone, by its most likely text."""
    with_tool = alone = 0
    with Engine.from_pretrained("countdown", seed=1) as engine:
        for task in tasks:
            root = engine.prefill(task.prompt)
            engine.decode(greedy := root.fork()[0], max_tokens=96, temperature=0.0)
            alone += task.reward(greedy.text) == 1.0
            written = work(engine, task, root)
            root.release(subtree=True)
            with_tool += task.reward(written) == 1.0
            print(f"{task.name}: {written.rstrip().replace(chr(10), ', ') or 'not solved'}")
    print(f"{with_tool} of {len(tasks)} solved with the calculator, {alone} by the model alone")
    return with_tool, alone


if __name__ == "__main__":
    main()
