from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve_apps.serving import Served, serve


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server without keys."""
    with serve() as served:
        yield served
