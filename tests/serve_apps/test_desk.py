"""What a desk gives its workers of a machine."""

from __future__ import annotations

import pytest

from serve_apps.desk import cpus_each


@pytest.mark.parametrize(
    ("free", "workers", "expected"),
    [(2.0, 1, 1), (16.0, 1, 15), (16.0, 4, 3), (4.0, 4, 1), (1.0, 1, 1), (3.0, 4, None), (0.0, 1, None)],
)
def test_workers_leave_http_a_processor(free: float, workers: int, expected: int | None) -> None:
    assert cpus_each(free, workers) == expected
