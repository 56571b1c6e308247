from __future__ import annotations

import json
from pathlib import Path

import pytest

from dendrite.errors import InvalidArgument
from serve_apps.args import ServeArgs
from serve_apps.security import ApiKey
from serve_apps.services import ServeSettings

KEY = {"id": "a", "sha256": "0" * 64, "limits": {"kv_bytes": 5}}


def test_keys_are_read(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([KEY]))
    assert ServeArgs(keys=str(file)).read_keys() == (ApiKey.model_validate(KEY),)
    assert ServeArgs().read_keys() == ()


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (None, "cannot be read: No such file"),
        ("{", "cannot be read as JSON"),
        ("3", "no list"),
        ("[]", "at least one key"),
        (json.dumps([{**KEY, "sha256": "sk-secret"}]), "field 0.sha256 is wrong"),
        (json.dumps([KEY, {**KEY, "sha256": "1" * 64}]), "each id at most once"),
        (json.dumps([KEY, {**KEY, "id": "b"}]), "each sha256 at most once"),
    ],
)
def test_keys_that_cannot_be_used_are_refused(tmp_path: Path, text: str | None, limit: str) -> None:
    file = tmp_path / "keys.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidArgument, match=limit) as caught:
        ServeArgs(keys=str(file)).read_keys()
    assert "sk-secret" not in str(caught.value)


def test_bounds_are_in_order() -> None:
    with pytest.raises(ValueError, match="min_ingresses must not exceed max_ingresses=4"):
        ServeArgs(min_ingresses=5)


def test_a_server_allows_less_than_a_default_but_no_more_than_its_limit() -> None:
    settings = ServeSettings(max_tokens=4)
    assert settings.tokens(None, "max_tokens", 16) == 4
    assert settings.tokens(3, "max_tokens", 16) == 3
    assert ServeSettings().tokens(None, "max_tokens", 16) == 16
