"""Every measured figure is a well-formed file, and README quotes only those."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme

RESULTS = sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("*.json"))
KEYS = {"benchmark", "subject", "hardware", "commit", "command", "versions", "metrics", "raw"}


@pytest.fixture(params=RESULTS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def result(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def test_there_are_results() -> None:
    assert RESULTS


def test_a_result_has_the_format_s_keys(result: dict[str, Any]) -> None:
    assert set(result) == KEYS


def test_a_file_is_named_after_its_content(path: Path, result: dict[str, Any]) -> None:
    assert path.stem == f"{result['benchmark']}-{result['hardware']}-{result['subject']}"


def test_metrics_are_finite_numbers_with_dotted_names(result: dict[str, Any]) -> None:
    assert result["metrics"]
    for name, value in result["metrics"].items():
        assert re.fullmatch(r"\w+(\.\w+)+", name), name
        assert type(value) in (int, float), name
        assert math.isfinite(value), name


def test_a_result_says_what_was_measured_and_how(result: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?", result["commit"])
    assert result["command"].startswith("python -m benchmarks.")
    assert {"python", "torch"} <= set(result["versions"])
    assert all(isinstance(version, str) and version for version in result["versions"].values())


def test_readme_quotes_the_results_as_they_are() -> None:
    text = readme.README.read_text()
    assert readme.refresh(text) == text, "README is out of date: run `python -m benchmarks.readme`"


def test_readme_quotes_every_block() -> None:
    assert set(readme.block_names(readme.README.read_text())) == set(readme.BLOCKS)
