from __future__ import annotations

import pytest

from actors.leases import MAX_ID, LeaseBook
from actors.refs import lease_of, shard_of, unique_id
from dendrite.errors import ClusterError


def test_a_renewed_lease_outlives_one_that_is_not() -> None:
    book = LeaseBook(ttl_s=10.0)
    kept, lost = book.open(now=0.0), book.open(now=0.0)

    assert book.renew([kept.id], now=9.0) == []

    assert book.take_expired(now=10.0) == [lost.id]
    assert kept.id in book
    assert lost.id not in book
    assert book.take_expired(now=19.0) == [kept.id]
    assert len(book) == 0


def test_an_expired_lease_cannot_be_renewed() -> None:
    book = LeaseBook(ttl_s=1.0)
    lease = book.open(now=0.0)
    book.take_expired(now=2.0)

    assert book.renew([lease.id], now=2.0) == [lease.id]
    assert not book.hear_of(lease.id, now=2.0)
    assert lease.id not in book


def test_a_lease_id_is_not_used_twice() -> None:
    book = LeaseBook(ttl_s=1.0)
    first = book.open(now=0.0)
    assert book.close(first.id, now=0.0)
    assert not book.close(first.id, now=0.0)

    assert book.open(now=0.0).id != first.id


def test_a_later_book_takes_in_leases_for_one_time_to_live() -> None:
    lease = LeaseBook(ttl_s=10.0).open(now=0.0).id
    book = LeaseBook(ttl_s=10.0, epoch=1, now=100.0)
    assert book.renew([lease], now=109.0) == []
    assert book.take_expired(now=118.9) == []
    assert book.renew([lease, 7], now=110.0) == [7]
    assert book.take_expired(now=120.0) == [lease]
    assert book.renew([lease], now=120.0) == [lease]


def test_a_later_book_does_not_take_in_what_it_was_told_is_over() -> None:
    book = LeaseBook(ttl_s=10.0, epoch=1, now=100.0)
    assert book.close(3, now=101.0)
    assert not book.close(3, now=101.0)
    assert book.renew([3], now=102.0) == [3]
    assert not book.hear_of(3, now=102.0)


def test_a_later_book_gives_no_id_that_an_earlier_one_gave() -> None:
    book = LeaseBook(ttl_s=10.0)
    given = {book.open(now=0.0).id for _ in range(3)}
    later = LeaseBook(ttl_s=10.0, epoch=1, now=100.0)
    assert later.open(now=100.0).id not in given
    beyond = later.open(now=100.0).id + 1_000
    later.renew([beyond], now=101.0)
    assert later.open(now=102.0).id > beyond


def test_ids_run_out_with_an_error() -> None:
    book = LeaseBook(ttl_s=10.0, epoch=1, now=0.0)
    book.renew([MAX_ID], now=1.0)
    with pytest.raises(ClusterError, match="lease ids"):
        book.open(now=1.0)


def test_an_id_names_its_lease() -> None:
    ids = {unique_id(lease, count) for lease in (1, 2, 77) for count in (0, 1, 2**32 - 1)}
    assert len(ids) == 9
    assert {lease_of(id) for id in ids} == {1, 2, 77}


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_trees_are_spread_over_the_shards(shards: int) -> None:
    of_one_lease = [shard_of(unique_id(5, 2 * count), shards) for count in range(4_000)]
    of_many = [shard_of(unique_id(lease, 0), shards) for lease in range(4_000)]
    for found in (of_one_lease, of_many):
        share = [found.count(shard) for shard in range(shards)]
        assert min(share) > 0.8 * 4_000 / shards
