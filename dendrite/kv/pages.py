"""The free list of KV pages, and who may write where when a page is shared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dendrite.errors import InvalidArgument, InvariantViolation, OutOfPages

SCRATCH_PAGE = 0
"""Never handed out: a write nobody reads goes here."""


class TailCopy(NamedTuple):
    """Copy the first `filled` slots of `src_page` to `dst_page`, in every layer, before the step's writes."""

    src_page: int
    dst_page: int
    filled: int


class PagePool:
    """Hands out page numbers 1 .. num_pages - 1. It knows which are taken, not by whom."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 2:
            raise InvalidArgument("num_pages", num_pages, "at least 2 (page 0 is scratch)")
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, SCRATCH_PAGE, -1))  # a stack: page 1 comes out first
        self._taken = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        """Pages that `alloc` can still hand out."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages handed out and not yet given back."""
        return self.num_pages - 1 - len(self._free)

    def alloc(self, n: int) -> list[int]:
        """Take `n` pages.

        Raises:
            OutOfPages: fewer than `n` are free; none was taken.
        """
        free = self._free
        if n > len(free):
            raise OutOfPages(n, len(free))
        pages = [free.pop() for _ in range(n)]
        for page in pages:
            self._taken[page] = 1
        return pages

    def free(self, pages: Sequence[int]) -> None:
        """Give pages back.

        Raises:
            InvariantViolation: one of them is not taken (freed twice, scratch, or out of range); none was given back.
        """
        taken = self._taken
        for at, page in enumerate(pages):
            if not (SCRATCH_PAGE < page < self.num_pages and taken[page]):
                for undone in pages[:at]:
                    taken[undone] = 1
                raise InvariantViolation(f"page {page} was freed but is not taken")
            taken[page] = 0
        self._free.extend(pages)

    def check(self, live_owned: Iterable[int]) -> None:
        """Compare the free list with the pages that live segments own (invariant I3).

        Raises:
            InvariantViolation: a page is owned twice, owned while free, or taken and owned by nobody.
        """
        owned: set[int] = set()
        for page in live_owned:
            if page in owned:
                raise InvariantViolation(f"page {page} is owned by two segments")
            owned.add(page)
        free = set(self._free)
        if len(free) != len(self._free):
            raise InvariantViolation("a page stands twice on the free list")
        if owned & free:
            raise InvariantViolation(f"pages {sorted(owned & free)[:8]} are owned and free")
        pages = set(range(SCRATCH_PAGE + 1, self.num_pages))
        if owned | free != pages:
            lost, foreign = sorted(pages - owned - free), sorted((owned | free) - pages)
            raise InvariantViolation(f"pages {lost[:8]} are taken but owned by nobody; unknown {foreign[:8]}")
        if {page for page in pages if self._taken[page]} != owned:
            raise InvariantViolation("the marks of taken pages differ from the pages owned")
