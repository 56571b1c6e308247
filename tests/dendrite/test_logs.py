from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dendrite.cli import app
from dendrite.errors import InvalidArgument
from dendrite.logs import (
    JsonFormatter,
    fields_of,
    log_environment,
    log_event,
    set_up_logs,
    set_up_logs_from_environment,
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {name: logging.getLogger(name) for name in ("dendrite", "actors")}
    states = {name: (list(each.handlers), each.level, each.propagate) for name, each in before.items()}
    yield
    for name, (handlers, level, propagate) in states.items():
        before[name].handlers[:] = handlers
        before[name].setLevel(level)
        before[name].propagate = propagate


def logged(form: str, level: str = "info") -> list[str]:
    """What two loggers write in a format."""
    stream = io.StringIO()
    set_up_logs(form, level, stream)
    fields = {"event": "rebuilt", "tree": 7, "node": 3}
    logging.getLogger("dendrite.cluster").info("event=rebuilt tree=%d", 7, extra={"fields": fields})
    logging.getLogger("actors.outbox").debug("unseen")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("actors.outbox").exception("failed")
    return stream.getvalue().splitlines()


def test_json_is_an_object_a_line_with_the_fields() -> None:
    told, failed = map(json.loads, logged("json"))
    assert (told["event"], told["tree"], told["node"]) == ("rebuilt", 7, 3)
    assert (told["level"], told["logger"], told["message"]) == ("info", "dendrite.cluster", "event=rebuilt tree=7")
    assert told["time"].endswith("+00:00")
    assert "ValueError: broken" in failed["error"]


def test_text_names_each_field_once() -> None:
    told, failed, *traceback = logged("text")
    assert told.endswith("INFO dendrite.cluster: event=rebuilt tree=7 node=3")
    assert failed.endswith("ERROR actors.outbox: failed")
    assert traceback[-1] == "ValueError: broken"


def test_levels_are_kept_to() -> None:
    assert [json.loads(line)["message"] for line in logged("json", "error")] == ["failed"]
    assert "unseen" in [json.loads(line)["message"] for line in logged("json", "debug")]


def test_setting_up_again_replaces() -> None:
    logged("text")
    assert len(logged("json")) == 2


values = (
    st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers()) | st.binary() | st.sets(st.integers())
)


@given(st.dictionaries(st.text(), values), st.text())
def test_whatever_the_fields_a_line_is_one_object(fields: dict[str, object], message: str) -> None:
    record = logging.makeLogRecord({"msg": message, "args": (), "levelname": "INFO", "fields": fields})
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == message
    assert set(told) >= set(fields)


def test_other_processes_are_told_by_their_environment() -> None:
    told = {"DENDRITE_LOG_FORMAT": "json", "DENDRITE_LOG_LEVEL": "debug"}
    assert log_environment({**told, "HOME": "/"}) == told
    assert log_environment({}) == {}
    set_up_logs_from_environment({})
    assert not any(type(each).__module__ == "dendrite.logs" for each in logging.getLogger("dendrite").handlers)
    set_up_logs_from_environment(told)
    assert logging.getLogger("actors").level == logging.DEBUG


@pytest.mark.parametrize(("form", "level"), [("xml", "info"), ("json", "loud"), ("", "info")])
def test_what_there_is_not_is_refused(form: str, level: str) -> None:
    with pytest.raises(InvalidArgument, match="log_"):
        set_up_logs(form, level)


def test_the_command_line_sets_it_up_here_and_for_processes_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DENDRITE_LOG_FORMAT", "text")  # put back as it was in the end
    refused = CliRunner().invoke(app, ["--log-format", "xml", "view", "no-such-file"])
    assert refused.exit_code == 2
    assert os.environ["DENDRITE_LOG_FORMAT"] == "text"
    CliRunner().invoke(app, ["--log-format", "json", "view", "no-such-file"])
    assert log_environment() == {"DENDRITE_LOG_FORMAT": "json"}
    assert [type(each.formatter) for each in logging.getLogger("dendrite").handlers] == [JsonFormatter]


def test_an_event_is_a_line_and_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("events")
    with caplog.at_level(logging.INFO, logger="events"):
        log_event(logger, logging.INFO, {"event": "moved", "worker": 1})
        log_event(logger, logging.WARNING, {"event": "lost", "worker": 2}, "it is dead")
        log_event(logger, logging.DEBUG, {"event": "unseen"})
    assert caplog.messages == ["event=moved worker=1", "event=lost worker=2: it is dead"]
    assert [fields_of(record) for record in caplog.records] == [
        {"event": "moved", "worker": 1},
        {"event": "lost", "worker": 2},
    ]
