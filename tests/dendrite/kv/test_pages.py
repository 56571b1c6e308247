from __future__ import annotations

import pytest

from dendrite.errors import InvalidArgument, InvariantViolation, OutOfPages
from dendrite.kv import SCRATCH_PAGE, PagePool


def test_every_page_but_scratch_is_handed_out_once() -> None:
    pool = PagePool(9)
    pages = pool.alloc(3) + pool.alloc(5)
    assert sorted(pages) == list(range(1, 9))
    assert SCRATCH_PAGE not in pages
    assert (pool.num_free, pool.num_used) == (0, 8)


def test_too_large_a_request_takes_nothing() -> None:
    pool = PagePool(5)
    pool.alloc(1)
    with pytest.raises(OutOfPages) as refused:
        pool.alloc(4)
    assert (refused.value.need, refused.value.free) == (4, 3)
    assert pool.num_free == 3


def test_freed_pages_come_back() -> None:
    pool = PagePool(4)
    pages = pool.alloc(3)
    pool.free(pages)
    assert sorted(pool.alloc(3)) == sorted(pages)


@pytest.mark.parametrize("page", [0, -1, 4, 3])
def test_a_page_that_is_not_taken_cannot_be_freed(page: int) -> None:
    pool = PagePool(4)
    pool.alloc(2)
    with pytest.raises(InvariantViolation, match=f"page {page} "):
        pool.free([page])


def test_a_refused_free_changes_nothing() -> None:
    pool = PagePool(8)
    pages = pool.alloc(2)
    for bad in ([*pages, 7], [pages[0], pages[0]]):
        with pytest.raises(InvariantViolation):
            pool.free(bad)
        pool.check(pages)


@pytest.mark.parametrize("num_pages", [1, 0, -3])
def test_a_pool_needs_a_page_besides_scratch(num_pages: int) -> None:
    with pytest.raises(InvalidArgument, match="num_pages"):
        PagePool(num_pages)


@pytest.mark.parametrize(
    ("owned", "message"),
    [([1, 2, 2], "two segments"), ([1, 2, 3], "owned and free"), ([1], "owned by nobody"), ([1, 2, 99], "unknown")],
)
def test_check_names_what_is_wrong(owned: list[int], message: str) -> None:
    pool = PagePool(6)
    assert pool.alloc(2) == [1, 2]
    pool.check([2, 1])
    with pytest.raises(InvariantViolation, match=message):
        pool.check(owned)
