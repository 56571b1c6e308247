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


def test_the_smallest_pool_has_one_page() -> None:
    assert PagePool(2).alloc(1) == [1]


@pytest.mark.parametrize(
    ("owned", "message"),
    [
        ([1, 2, 2], "page 2 is owned by two segments"),
        ([1, 2, 3, 4], r"pages \[3, 4\] are owned and free"),
        ([1], r"pages \[2\] are taken but owned by nobody; unknown \[\]"),
        ([1, 2, 0, 99], r"pages \[\] are taken but owned by nobody; unknown \[0, 99\]"),
    ],
)
def test_check_names_what_is_wrong(owned: list[int], message: str) -> None:
    pool = PagePool(6)
    assert pool.alloc(2) == [1, 2]
    pool.check([2, 1])
    with pytest.raises(InvariantViolation, match=message):
        pool.check(owned)


def test_check_sees_a_damaged_free_list() -> None:
    pool = PagePool(4)
    (page,) = pool.alloc(1)
    pool._free.append(pool._free[0])
    with pytest.raises(InvariantViolation, match="twice on the free list"):
        pool.check([page])


def test_check_sees_marks_that_differ_from_the_owners() -> None:
    pool = PagePool(4)
    (page,) = pool.alloc(1)
    pool._taken[page + 1] = 1
    with pytest.raises(InvariantViolation, match="marks of taken pages"):
        pool.check([page])
