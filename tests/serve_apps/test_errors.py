"""What failures look like to a client."""

from __future__ import annotations

import inspect
import pickle

import pytest

from dendrite import errors
from dendrite.errors import ContextOverflow, InvalidArgument, LeaseExpired, OutOfPages, Overloaded
from serve_apps.errors import HttpError, as_http


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidArgument("n", 0, "at least 1"), 400, "invalid_value"),
        (ContextOverflow(9, 8), 400, "context_length_exceeded"),
        (LeaseExpired(3), 410, "lease_expired"),
        (OutOfPages(3, 1), 503, "out_of_pages"),
        (Overloaded(0, 8, 2.4), 503, "overloaded"),
    ],
)
def test_errors_have_their_status(error: Exception, status: int, code: str) -> None:
    told = as_http(error)
    assert (told.status, told.code) == (status, code)
    assert told.body.error.message


def test_a_server_that_is_busy_says_when_to_come_back() -> None:
    assert as_http(Overloaded(0, 8, 2.4)).headers == {"retry-after": "2"}
    assert as_http(OutOfPages(3, 1)).headers == {"retry-after": "1"}


def test_what_nobody_foresaw_tells_nothing() -> None:
    told = as_http(RuntimeError("/home/secret"))
    assert told.status == 500
    assert "secret" not in told.body.model_dump_json()


def test_every_error_of_dendrite_is_a_client_s_or_a_server_s() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.DendriteError)]
    assert len(kinds) > 15
    for kind in kinds:
        bare = kind.__new__(kind)
        bare.args = ("x",)
        bare.field = bare.retry_after_s = None
        assert 400 <= as_http(bare).status <= 503


def test_an_http_error_survives_a_message() -> None:
    error = pickle.loads(pickle.dumps(HttpError(429, "slow down", param="n", code="x", retry_after_s=3.2)))
    assert (error.status, error.param, error.code) == (429, "n", "x")
    assert error.headers == {"retry-after": "3"}
