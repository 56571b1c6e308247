"""Log lines of Dendrite's processes: for people, or one JSON object a line for machines.

A message may carry fields, such as the tree and the node that it is about: `log.info("…", extra={"fields": {...}})`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, TypeAlias, get_args

from dendrite.errors import InvalidArgument

LogFormat: TypeAlias = Literal["text", "json"]

FORMAT_VARIABLE = "DENDRITE_LOG_FORMAT"
LEVEL_VARIABLE = "DENDRITE_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")
_LOGGERS = ("dendrite", "actors")


class JsonFormatter(logging.Formatter):
    """Makes a JSON object of a record: time (UTC), level, logger, process, message, error, then its fields.

    A field never replaces one of those, and one that is no JSON value is given as text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps({**fields_of(record), **told}, default=str)


class TextFormatter(logging.Formatter):
    """Makes a line of a record: time, level, logger, message, and those fields that the message does not name."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The record without its error."""
        message = record.getMessage()
        missing = [f"{key}={value}" for key, value in fields_of(record).items() if f"{key}=" not in message]
        return " ".join([super().formatMessage(record), *missing])


class _Handler(logging.StreamHandler[TextIO]):
    """Marks the handlers that `set_up_logs` has made."""


def log_event(logger: logging.Logger, level: int, fields: Mapping[str, Any], reason: object = "") -> None:
    """Log what has happened: its fields, `event` first, as `key=value` and as the record's fields; then the reason."""
    if logger.isEnabledFor(level):
        line = " ".join(f"{key}={value}" for key, value in fields.items())
        logger.log(level, "%s", f"{line}: {reason}" if reason else line, extra={"fields": dict(fields)})


def fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields that a record carries."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def set_up_logs(form: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Write Dendrite's log to a stream, in a process that has no logging of its own.

    Args:
        form: "text" or "json".
        level: the least that is written: "debug", "info", "warning" or "error".
        stream: None is the standard error.

    Raises:
        InvalidArgument: there is no such format or level.
    """
    if form not in get_args(LogFormat):
        raise InvalidArgument("log_format", form, f"must be one of {', '.join(get_args(LogFormat))}")
    if level not in LEVELS:
        raise InvalidArgument("log_level", level, f"must be one of {', '.join(LEVELS)}")
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        for old in [each for each in logger.handlers if isinstance(each, _Handler)]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False


def log_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables by which another process logs as this one was told to; empty if it was not."""
    return {name: environment[name] for name in (FORMAT_VARIABLE, LEVEL_VARIABLE) if name in environment}


def set_up_logs_from_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Do what `set_up_logs` does if `DENDRITE_LOG_FORMAT` is set, at the level of `DENDRITE_LOG_LEVEL`.

    Raises:
        InvalidArgument: a variable has another value than it may have.
    """
    if FORMAT_VARIABLE in environment:
        set_up_logs(environment[FORMAT_VARIABLE], environment.get(LEVEL_VARIABLE, "info"))
