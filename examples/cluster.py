"""The same search on a Ray cluster: two model workers here, or on the cluster that RAY_ADDRESS names.

Run it with `python examples/cluster.py`.
"""

from __future__ import annotations

import actors
from dendrite import Budget, run_search
from dendrite.search.tasks.countdown import problems


def main() -> None:
    budget = Budget(tokens=2_000, seconds=10)
    with actors.connect(model="countdown", workers=2) as cluster:
        for task in problems(3, seed=1):
            result = run_search(task, cluster, algorithm="mcts", budget=budget, seed=0)
            print(f"{task.name}: {'solved' if result.solved else 'not solved'}, {result.answer}")


if __name__ == "__main__":
    main()
