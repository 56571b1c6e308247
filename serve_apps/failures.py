"""Failures that nobody foresaw: a client learns nothing of them, so the log has to."""

from __future__ import annotations

import logging

from serve_apps.errors import HttpError, as_http

failures = logging.getLogger("dendrite.http")


def told(error: BaseException, what: str) -> HttpError:
    """What a failure is to a client. One that is the server's own is written to the log first.

    Args:
        error: what was raised.
        what: what has failed, by its id, such as "request req_1".
    """
    answer = as_http(error)
    if answer.status == 500 and answer is not error:
        failures.error("%s failed", what, exc_info=error)
    return answer
