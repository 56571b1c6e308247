from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.fleet import Fleet, RecoveryOptions
from actors.lineage import Copy, Lineage, Segment
from actors.refs import ClusterNode
from actors.routing import CHUNK_TOKENS, PrefixMemory, Router
from actors.rpc import ActorLost
from dendrite.errors import InvalidArgument, UnknownNode, WorkerDraining

HEADER = tuple(range(3 * CHUNK_TOKENS))
DEAD = ActorLost("a worker", permanent=True)


def router(workers: int = 2) -> Router:
    return Router(Fleet([None] * workers))


def busy(router: Router, worker: int, waited_s: float) -> None:
    """A worker with a call under way, whose last ones have waited."""
    router._fleet.rates(worker).waited_s = waited_s
    router._fleet._workers[worker].in_flight = 1


def segment() -> Segment:
    lineage = Lineage()
    root = lineage.add(Copy(ClusterNode(0, 1, 0), 0), tuple(range(100)))
    return lineage.add(Copy(ClusterNode(0, 1, 1), 0), tuple(range(20)), root)


def on_zero(_: Segment, worker: int) -> bool:
    return worker == 0


def test_prefixes_are_matched_by_whole_chunks() -> None:
    memory = PrefixMemory()
    memory.note((*HEADER, 7), 1, epoch=0)
    assert memory.match((*HEADER, 8, 9), 1, 0) == 3 * CHUNK_TOKENS
    assert memory.match(HEADER[: 2 * CHUNK_TOKENS + 5], 1, 0) == 2 * CHUNK_TOKENS
    assert memory.match((5, *HEADER), 1, 0) == 0
    assert memory.match(HEADER, 0, 0) == 0
    assert memory.match(HEADER, 1, 1) == 0, "the worker has lost it"


def test_the_oldest_prefixes_are_forgotten() -> None:
    memory = PrefixMemory(limit=3)
    memory.note(HEADER, 0, 0)
    other = tuple(range(1_000, 1_000 + CHUNK_TOKENS))
    memory.note(other, 0, 0)
    assert len(memory) == 3
    assert memory.match(other, 0, 0) == CHUNK_TOKENS
    assert memory.match(HEADER, 0, 0) == 0


def test_a_prompt_goes_where_it_was_computed_before() -> None:
    chooser = router()
    assert chooser.for_prompt(1, HEADER, 0) == 0
    chooser.prompts.note(HEADER, 1, 0)
    assert chooser.for_prompt(2, HEADER, 0) == 1
    assert chooser.for_prompt(3, HEADER[:10], 0) == 0
    assert chooser.decisions == {"balanced": 2, "prefix": 1}


def test_a_prompt_does_not_queue_for_longer_than_its_prefill_takes() -> None:
    chooser = router()
    chooser.prompts.note(HEADER, 1, 0)
    chooser._fleet.rates(0).prefilled(1.0, 1_000)  # the header takes 0.192 s
    busy(chooser, 1, 0.15)
    assert chooser.for_prompt(1, HEADER, 0) == 1
    busy(chooser, 1, 0.25)
    assert chooser.for_prompt(2, HEADER, 0) == 0


def test_a_prompt_avoids_workers_that_are_not_alive() -> None:
    chooser = router(3)
    chooser.prompts.note(HEADER, 0, 0)
    chooser._fleet.lost(0, 0, DEAD)
    assert chooser.for_prompt(1, HEADER, 0) == 1
    assert chooser.decisions == {"diverted": 1}


def test_children_are_made_where_their_parent_lies() -> None:
    chooser = router()
    assert chooser.for_node(segment(), on_zero).worker == 0
    busy(chooser, 0, 10.0)
    assert chooser.for_node(segment(), on_zero).worker == 0, "nothing is known of how long it would take elsewhere"
    assert chooser.decisions == {"owner": 2}


def test_a_long_queue_spills_to_where_the_node_is_ready_sooner() -> None:
    chooser = router()
    chooser._fleet.rates(1).prefilled(1.0, 1_000)  # 120 tokens take 0.12 s
    busy(chooser, 0, 0.2)
    assert chooser.for_node(segment(), on_zero).worker == 0
    busy(chooser, 0, 0.3)
    assert chooser.for_node(segment(), on_zero).worker == 1
    busy(chooser, 1, 0.1)
    assert chooser.for_node(segment(), on_zero).worker == 0
    assert chooser.decisions == {"owner": 2, "spilled": 1}


def test_replicas_share_calls_by_how_long_their_steps_take() -> None:
    chooser, node = router(), segment()
    fleet = chooser._fleet
    shares = [0, 0]
    for _ in range(40):
        worker = chooser.for_node(node, lambda *_: True).worker
        fleet._workers[worker].in_flight += 1
        shares[worker] += 1
    assert shares == [20, 20], "nothing is known of either"
    for _ in range(20):
        fleet.rates(0).decoded(1.0, 100, calls=20)
        fleet.rates(1).decoded(3.0, 100, calls=20)
    fleet.rates(0).waited_s = 5.0
    for _ in range(40):
        worker = chooser.for_node(node, lambda *_: True).worker
        fleet._workers[worker].in_flight += 1
        shares[worker] += 1
    assert shares == [60, 20], "one of them is three times as fast"


def test_what_fewer_calls_take_is_learned_from_all_workers() -> None:
    fleet = Fleet([None, None])
    for calls in (4, 24) * 20:
        fleet.rates(0).decoded(10.0 + calls, 100, calls=calls)
    for _ in range(20):
        fleet.rates(1).decoded(2 * 34.0, 100, calls=24)
    fleet._workers[1].in_flight = 3
    assert fleet.next_step(1) == pytest.approx(2 * 0.14, rel=0.1)
    assert fleet.crowd_delay(1) == pytest.approx(2 * 0.01 * 3 * 100, rel=0.1)


def test_a_lost_node_goes_where_most_of_its_path_is() -> None:
    chooser, lost = router(3), segment()
    chooser._fleet.lost(0, 0, DEAD)
    assert chooser.for_node(lost, lambda each, worker: worker == 2 and each is lost.parent).worker == 2
    assert chooser.for_node(lost, lambda *_: False).worker == 1
    assert chooser.decisions == {"rebuilt": 2}


def test_a_loss_is_news_once() -> None:
    fleet = Fleet([None, None])
    assert fleet.lost(0, 0, UnknownNode(1, 2))
    assert not fleet.lost(0, 0, DEAD)
    assert (fleet.epoch(0), fleet.up) == (1, [0, 1])
    assert fleet.lost(1, 0, WorkerDraining(1))
    assert fleet.up == [0]


def test_a_wait_is_what_a_call_takes_over_the_best() -> None:
    rates = router()._fleet.rates(0)
    rates.decoded(1.0, 100)
    assert rates.waited_s == 0
    rates.decoded(2.0, 100)
    assert rates.waited_s == pytest.approx(0.3)
    rates.decoded(1.0, 0)
    assert rates.waited_s == pytest.approx(0.3)


@pytest.mark.parametrize("field", ["attempts", "restart_timeout_s", "manager_timeout_s", "silence_s"])
def test_options_out_of_range_are_refused(field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        RecoveryOptions(**{field: 0})


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=4), st.integers(0, 2), st.integers(0, 1)), max_size=8))
def test_one_walk_finds_what_each_worker_has(prompts: list[tuple[list[int], int, int]]) -> None:
    memory, epochs = PrefixMemory(), {0: 0, 1: 1, 2: 0}
    noted: dict[tuple[int, ...], dict[int, int]] = {}
    for kinds, worker, epoch in prompts:
        memory.note([kind for kind in kinds for _ in range(CHUNK_TOKENS)], worker, epoch)
        for length in range(1, len(kinds) + 1):
            noted.setdefault(tuple(kinds[:length]), {})[worker] = epoch
    for kinds, _, _ in prompts:
        expected = dict.fromkeys(epochs, 0)
        for worker, epoch in epochs.items():
            while expected[worker] < len(kinds):
                if noted.get(tuple(kinds[: expected[worker] + 1]), {}).get(worker) != epoch:
                    break
                expected[worker] += 1
        tokens = [kind for kind in kinds for _ in range(CHUNK_TOKENS)]
        found = memory.matches(tokens, epochs)
        assert found == {worker: chunks * CHUNK_TOKENS for worker, chunks in expected.items()}
