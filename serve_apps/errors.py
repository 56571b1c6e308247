"""Every failure as an OpenAI error body: which status, which type, which field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dendrite.errors import (
    Cancelled,
    ClusterError,
    ContextOverflow,
    DendriteError,
    GrammarError,
    InvalidArgument,
    LeaseExpired,
    ModelError,
    NodeReleased,
    OutOfPages,
    Overloaded,
    UnknownNode,
    WorkerDraining,
)
from serve_apps.schemas import ErrorBody, ErrorDetail

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    410: "gone_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
_BUSY_S = 1.0
"""What a client is asked to wait where nothing better is known."""
_UNDER = "the id of the request, the tree or the search"


class HttpError(DendriteError):
    """A request that fails with a status. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s
        super().__init__(message)

    @property
    def body(self) -> ErrorBody:
        """The response's body."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return ErrorBody(error=ErrorDetail(message=self.message, type=kind, param=self.param, code=self.code))

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers."""
        headers: dict[str, str] = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def not_found(what: str, id: str) -> HttpError:
    """Something is not there, or is somebody else's: nobody learns which."""
    return HttpError(404, f"there is no {what} {id!r}", code=f"{what}_not_found")


def node_released(node: int) -> HttpError:
    """A tree's node has been given up."""
    return HttpError(410, f"node {node} has been released", code="node_released")


def unsupported(field: str, why: str) -> HttpError:
    """A field, or a value of it, that this server does not implement."""
    return HttpError(400, f"{field}: {why}", param=field, code="unsupported_parameter")


def as_http(error: BaseException) -> HttpError:
    """What a failure is to a client. One that nobody foresaw tells nothing of the server's inside."""
    match error:
        case HttpError():
            return error
        case InvalidArgument():
            return HttpError(400, str(error), param=error.field, code="invalid_value")
        case GrammarError():
            return HttpError(400, str(error), param="response_format", code="grammar_error")
        case ContextOverflow():
            return HttpError(400, str(error), code="context_length_exceeded")
        case LeaseExpired():
            return HttpError(410, str(error), code="lease_expired")
        case UnknownNode() | NodeReleased():
            return HttpError(410, str(error), code="node_released")
        case Overloaded():
            return HttpError(503, str(error), code="overloaded", retry_after_s=error.retry_after_s)
        case OutOfPages():
            return HttpError(503, str(error), code="out_of_pages", retry_after_s=_BUSY_S)
        case WorkerDraining():
            return HttpError(503, str(error), code="draining", retry_after_s=_BUSY_S)
        case Cancelled():
            return HttpError(409, str(error), code="cancelled")
        case ModelError():
            return HttpError(400, str(error), code="model_error")
        case ClusterError():
            return HttpError(503, str(error), code="cluster_error", retry_after_s=_BUSY_S)
    return HttpError(500, f"the server failed; its log has the details under {_UNDER}", code="internal_error")


def of_validation(problems: Sequence[Mapping[str, Any]]) -> HttpError:
    """The first problem that pydantic found in a request, the field named as the client wrote it."""
    first = problems[0]
    field, reason = _field(first["loc"]), str(first["msg"])
    if first["type"] == "extra_forbidden":
        return HttpError(400, f"{field} is not supported by this server", param=field, code="unsupported_parameter")
    if first["type"] == "json_invalid":
        return HttpError(400, f"the body is not JSON: {reason}", code="invalid_json")
    if first["type"] == "value_error":  # a rule of several fields, which names the one at fault
        named, _, reason = reason.removeprefix("Value error, ").partition(": ")
        field = named if field is None or named.startswith(f"{field}.") else field
    code = "missing" if first["type"] == "missing" else "invalid_value"
    return HttpError(400, f"{field}: {reason}" if field else reason, param=field, code=code)


def _field(loc: Sequence[str | int]) -> str | None:
    """The path of a field, without where it lies in the request and which kind of value was tried."""
    places = ("body", "query", "path", "header") if loc else ()
    parts = loc[1:] if loc and loc[0] in places else loc
    named = [str(part) for part in parts if isinstance(part, int) or not _is_kind(part)]
    return ".".join(named) or None


def _is_kind(part: str) -> bool:
    return part in ("str", "int", "float", "bool") or not part.replace("_", "").isalnum()
