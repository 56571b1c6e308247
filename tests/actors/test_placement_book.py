"""Workers that are taken away for good."""

from __future__ import annotations

from actors.placement_book import PlacementBook
from actors.refs import unique_id


def book_of(workers: int) -> PlacementBook:
    book = PlacementBook(60.0)
    for worker in range(workers):
        book.introduce(worker, f"actor {worker}")
    return book


def test_nothing_is_placed_where_a_worker_was() -> None:
    book = book_of(3)
    before = [book.place(unique_id(1, tree), 0.0) for tree in range(6)]
    assert sorted(before) == [0, 0, 1, 1, 2, 2]
    book.remove(1)
    assert (len(book), 1 in book, 2 in book) == (2, False, True)
    again = [book.place(unique_id(1, tree), 0.0) for tree in range(6)]
    assert 1 not in again
    assert [new for new, old in zip(again, before, strict=True) if old != 1] == [old for old in before if old != 1]


def test_it_is_not_asked_to_reclaim_anything() -> None:
    book = book_of(2)
    for tree in range(4):
        book.place(unique_id(5, tree), 0.0)
    book.remove(0)
    assert book.end(5) == [1]


def test_taking_it_away_again_or_forgetting_it_changes_nothing() -> None:
    book = book_of(2)
    book.remove(0)
    book.remove(0)
    book.forget(0)
    assert (len(book), 0 in book) == (1, False)


def test_a_worker_that_comes_back_is_a_new_one() -> None:
    book = book_of(1)
    book.introduce(1, "other")
    book.remove(0)
    book.introduce(0, "again")
    assert book.handle(0) == "again"
    assert book.place(unique_id(1, 1), 0.0) == 0
