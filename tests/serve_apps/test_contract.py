"""Whatever a client sends within the schema or beside it: no failure of the server, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_apps.services import ServeSettings
from tests.serve_apps.serving import PROMPT, Served, serve

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 12
"""For each route, within the schema and beside it."""


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """A server whose requests are cheap; at its end nothing may be held."""
    with serve(settings=ServeSettings(max_tokens=4, max_choices=4)) as served:
        yield served


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.timeout(580)
def test_every_route_keeps_its_contract(small: Served, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    tried, statuses = 0, set[int]()
    tree = httpx.post(f"{small.url}/v1/trees", json={"prompt": PROMPT, "ttl_s": 3_600.0}).json()["id"]
    for found in schema.exclude(path_regex="^/v1/search$").get_all_operations():
        operation = found.ok()
        assert operation is not None

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            if mode is GenerationMode.POSITIVE:
                aim(case, tree)
            statuses.add(case.call_and_validate(checks=CHECKS, timeout=30.0).status_code)

        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
            continue
        check()
        tried += 1
    assert tried > 8
    assert statuses >= ({200, 400, 404} if mode is GenerationMode.POSITIVE else {400})


def aim(case: schemathesis.Case, tree: str) -> None:
    """Have a case ask for what there is, so that it gets further than a 404."""
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "countdown"
    if "/trees/" in case.operation.path and case.method != "DELETE":
        case.path_parameters["id"] = tree
        if "node" in case.path_parameters:
            case.path_parameters["node"] = 0
