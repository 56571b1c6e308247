"""Search with any generator: a model behind an API, a tool, a person. Here it is a function that sometimes fails.

Each node is a tour of eight cities, a step swaps two of them, and a shorter tour is worth more. Four calls are under
way at a time and may come back in any order: what the search does next does not depend on it. Run it with
`python examples/ask_tell.py`.
"""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor, as_completed
from math import dist
from random import Random

from dendrite.search.ask_tell import AbMctsA, Ask, AskTell

Tour = tuple[int, ...]

CITIES = ((0.1, 0.2), (0.9, 0.3), (0.4, 0.8), (0.6, 0.1), (0.2, 0.9), (0.8, 0.7), (0.5, 0.5), (0.3, 0.4))
START: Tour = (0, 1, 2, 3, 4, 5, 6, 7)


def length(tour: Tour) -> float:
    return sum(dist(CITIES[here], CITIES[there]) for here, there in zip(tour, (*tour[1:], tour[0]), strict=True))


def generate(ask: Ask[Tour]) -> Tour:
    """Stand in for a model: improve on what there is, with a seed that the place in the tree gives."""
    chance = Random(repr(ask.path))
    if chance.random() < 0.1:
        raise ConnectionError("the model is busy")
    tour = list(ask.state or START)
    one, other = chance.sample(range(len(tour)), 2)
    tour[one], tour[other] = tour[other], tour[one]
    return tuple(tour)


def main() -> Tour:
    """Search; return the shortest tour found."""
    search: AskTell[Tour] = AskTell(AbMctsA(), seed=0, root=START)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(60):
            calls = {pool.submit(generate, ask): ask for ask in search.ask(4)}
            for call in as_completed(calls):
                if call.exception():
                    search.give_up(calls[call].id)
                else:
                    search.tell(calls[call].id, value=1 / (1 + length(call.result())), state=call.result())
            search = pickle.loads(pickle.dumps(search))  # a search may stop here, and go on another day
    best = search.best()
    tour = (best.state if best is not None else None) or START
    print(f"{len(search.nodes)} nodes; from {length(START):.2f} to {length(tour):.2f}: {tour}")
    return tour


if __name__ == "__main__":
    main()
