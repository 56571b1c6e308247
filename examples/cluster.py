"""The same search on a Ray cluster: two model workers here, or on the cluster that RAY_ADDRESS names.

Run it with `python examples/cluster.py`.
"""

from __future__ import annotations

import actors
from dendrite import Budget, run_search
from dendrite.search.result import SearchResult
from dendrite.search.tasks.countdown import problems


def main() -> list[SearchResult]:
    """Search on two workers; return what was found."""
    results = []
    budget = Budget(tokens=2_000, seconds=10)
    with actors.connect(model="countdown", workers=2) as cluster:
        for task in problems(3, seed=1):
            result = run_search(task, cluster, algorithm="mcts", budget=budget, seed=0)
            results.append(result)
            print(f"{task.name}: {'solved' if result.solved else 'not solved'}, {result.answer}")
    return results


if __name__ == "__main__":
    main()
