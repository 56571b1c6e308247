from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dendrite.kv import Node
from dendrite.kv.sharing import shared_pages
from tests.dendrite.kv.simulated import SimulatedEngine


def test_a_page_is_shared_from_the_second_live_node_on() -> None:
    engine = SimulatedEngine(page_size=8)
    root = engine.prompt(range(20))
    assert shared_pages(engine.cache) == 0
    children = root.fork(2)
    for child in children:
        engine.decode(child, [1, 2])
    assert shared_pages(engine.cache) == len(root.pages) == 3
    root.release()
    assert shared_pages(engine.cache) == 3
    children[0].release()
    assert shared_pages(engine.cache) == 0


def test_a_cached_prompt_is_shared_by_none() -> None:
    engine = SimulatedEngine(page_size=8)
    for _ in range(2):
        engine.prompt(range(20)).release()
    assert engine.cache.cached_pages
    assert shared_pages(engine.cache) == 0


@given(choices=st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=25))
def test_it_counts_what_paths_have_in_common(choices: list[tuple[int, bool]]) -> None:
    engine = SimulatedEngine(num_pages=200, page_size=8, prefix_cache=False)
    live = [engine.prompt(range(20))]
    for pick, release in choices:
        node = live[pick % len(live)]
        if release and len(live) > 1:
            live.remove(node)
            node.release()
        elif not release:
            [child] = node.fork(1)
            engine.decode(child, range(9))
            live.append(child)
    readers: dict[Node, int] = {}
    for node in live:
        above: Node | None = node
        while above is not None:
            readers[above] = readers.get(above, 0) + 1
            above = above.parent
    assert shared_pages(engine.cache) == sum(len(node.pages) for node, count in readers.items() if count > 1)
