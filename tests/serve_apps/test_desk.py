"""A desk that cannot start leaves nothing, and one that can leaves HTTP a processor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import ray

from dendrite.errors import ModelError
from dendrite.model.folder import resolve
from serve_apps.args import ServeArgs
from serve_apps.desk import Desk, cpus_each


async def test_a_model_without_a_tokenizer_is_refused_before_a_cluster_is_started(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve("countdown"), tmp_path / "model")
    for file in folder.glob("token*"):
        file.unlink()
    desk, others = Desk(ServeArgs(model=str(folder)), ()), ray.is_initialized()
    for _ in range(2):  # each ingress that asks has it tried again
        with pytest.raises(ModelError, match="no tokenizer"):
            await desk.contacts()
        assert ray.is_initialized() == others
    await desk.check_health()
    await desk.close()


@pytest.mark.parametrize(
    ("free", "workers", "expected"),
    [(2.0, 1, 1), (16.0, 1, 15), (16.0, 4, 3), (4.0, 4, 1), (1.0, 1, 1), (3.0, 4, None), (0.0, 1, None)],
)
def test_workers_leave_http_a_processor(free: float, workers: int, expected: int | None) -> None:
    assert cpus_each(free, workers) == expected
