from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import Any

import pytest

from dendrite.errors import DendriteError, InvalidArgument, RunningEventLoop
from dendrite.search import ALGORITHMS, Budget, SearchEvent, run_search, run_search_async
from tests.dendrite.search.synthetic import Puzzle, TreeBackend, binary, leaves

PUZZLE = Puzzle({leaves(3)[3]: 1.0})
ENDLESS = Puzzle({}, depth=10_000)
LOOP = {"a\n" * n: {"a\n": 0.5, "b\n": 0.5} for n in range(500)}


@pytest.mark.parametrize("algorithm", ["mcts", "best_of_n"])
def test_run_search_runs_an_event_loop_of_its_own(algorithm: str) -> None:
    backend = TreeBackend(binary(3), {})
    result = run_search(PUZZLE, backend, algorithm, Budget(tokens=10_000), seed=4)
    assert (result.algorithm, result.task, result.seed, result.solved) == (algorithm, "puzzle", 4, True)
    assert backend.held == []


async def test_run_search_in_an_event_loop_points_to_its_twin() -> None:
    with pytest.raises(RunningEventLoop, match="run_search_async"):
        run_search(PUZZLE, TreeBackend(binary(3)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"algorithm": "alpha_zero"}, "algorithm='alpha_zero': must be one of mcts, best_of_n, greedy"),
        ({"algorithm": "greedy", "temperature": 1.0}, "temperature=1.0: no option of greedy; it has: none"),
        ({"with_draw": 3}, "with_draw=3: no option of mcts; it has: selection, "),
        ({"in_flight": 0}, "in_flight=0: "),
        ({"selection": "ucb"}, "selection='ucb': "),
        ({"algorithm": "best_of_n", "temperature": 0.0}, "temperature=0.0: "),
        ({"seed": -1}, "seed=-1: "),
        ({"seed": 2**63}, "seed="),
        ({"backend": "engine"}, "backend='engine': must be an Engine"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        run_search(**{"task": PUZZLE, "backend": TreeBackend(binary(3), {}), **changes})
    assert str(caught.value).startswith(named)


def test_options_are_frozen() -> None:
    for algorithm in ALGORITHMS.values():
        options = algorithm.options_type()
        for field in type(options).model_fields:
            with pytest.raises(ValueError, match="frozen"):
                setattr(options, field, 1)


def test_a_result_is_a_line_of_json() -> None:
    result = run_search(PUZZLE, TreeBackend(binary(3), {}), seed=2)
    assert json.loads(json.dumps(result.to_dict()))["text"] == leaves(3)[3]


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
async def test_the_deadline_cancels_at_once(algorithm: str) -> None:
    backend = TreeBackend(LOOP, {}, delay=0.02)
    start = time.monotonic()
    result = await run_search_async(ENDLESS, backend, algorithm, Budget(seconds=0.15))
    assert 0.15 <= time.monotonic() - start < 1.0
    assert (result.stop_reason, result.solved) == ("seconds", False)
    assert result.text.startswith("a\n"), "what there was is returned"
    assert (backend.running, backend.held) == (0, [])


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
async def test_a_deadline_before_the_prefill_ends_gives_an_empty_result(algorithm: str) -> None:
    class Slow(TreeBackend):
        async def prefill(self, prompt: object, *, seed: int | None = None) -> int:
            await asyncio.sleep(60)
            return 0

    result = await run_search_async(PUZZLE, Slow(binary(3), {}), algorithm, Budget(seconds=0.01))
    assert (result.stop_reason, result.text, result.nodes, result.answer) == ("seconds", "", 1, None)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
async def test_a_timeout_of_the_backend_is_not_taken_for_the_deadline(algorithm: str) -> None:
    backend = TreeBackend(binary(3), {}, failures={1: TimeoutError("no answer")})
    with pytest.raises(TimeoutError, match="no answer"):
        await run_search_async(PUZZLE, backend, algorithm, Budget(seconds=60))
    assert (backend.running, backend.held) == (0, [])


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("turns", [0, 1, 3, 10, 40])
async def test_cancelling_leaves_nothing_held(algorithm: str, turns: int) -> None:
    backend = TreeBackend(LOOP, {})
    search = asyncio.create_task(run_search_async(ENDLESS, backend, algorithm, Budget(tokens=10**6)))
    for _ in range(turns):
        await asyncio.sleep(0)
    search.cancel()
    with pytest.raises(asyncio.CancelledError):
        await search
    assert (backend.running, backend.held) == (0, [])


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_ctrl_c_leaves_nothing_held(algorithm: str) -> None:
    backend = TreeBackend(LOOP, {})

    def interrupt(event: SearchEvent) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_search(ENDLESS, backend, algorithm, Budget(tokens=10**6), on_event=interrupt)
    assert (backend.running, backend.held) == (0, [])


async def test_an_error_of_a_callback_ends_the_search_cleanly() -> None:
    class Unhappy(DendriteError):
        pass

    def complain(event: SearchEvent) -> None:
        raise Unhappy

    backend = TreeBackend(binary(3), {})
    with pytest.raises(Unhappy):
        await run_search_async(PUZZLE, backend, on_event=complain)
    assert (backend.running, backend.held) == (0, [])


async def test_many_searches_share_a_backend() -> None:
    backend = TreeBackend(binary(3), {})
    results = await asyncio.gather(*(run_search_async(PUZZLE, backend, seed=seed) for seed in range(20)))
    assert all(result.solved for result in results)
    assert (backend.running, backend.held) == (0, [])
