from __future__ import annotations

from actors.leases import LeaseBook
from actors.refs import lease_of, unique_id


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
    assert lease.id not in book


def test_a_lease_id_is_not_used_twice() -> None:
    book = LeaseBook(ttl_s=1.0)
    first = book.open(now=0.0)
    assert book.close(first.id)
    assert not book.close(first.id)

    assert book.open(now=0.0).id != first.id


def test_an_id_names_its_lease() -> None:
    ids = {unique_id(lease, count) for lease in (1, 2, 77) for count in (0, 1, 2**32 - 1)}
    assert len(ids) == 9
    assert {lease_of(id) for id in ids} == {1, 2, 77}
