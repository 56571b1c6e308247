"""The same search on a Ray cluster: two model workers on this machine, or on the cluster that RAY_ADDRESS names.

    python examples/cluster.py
"""

from __future__ import annotations

import actors
from dendrite import Budget, run_search
from dendrite.search.tasks.countdown import problems


def main() -> None:
    with actors.connect(model="countdown", workers=2) as cluster:
        for task in problems(3, seed=1):
            result = run_search(task, cluster, algorithm="mcts", budget=Budget(tokens=2_000, seconds=10), seed=0)
            print(f"{task.name}: {'solved' if result.solved else 'not solved'}, {result.answer}")


if __name__ == "__main__":
    main()
