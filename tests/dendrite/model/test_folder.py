"""Finding a model by path or by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dendrite.errors import ModelNotFound
from dendrite.model.folder import packaged_models, resolve


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


def test_the_home_folder_can_be_abbreviated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["no-such-model", "", "..", "a/b"])
def test_an_unknown_name_lists_the_packaged_models(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound) as caught:
        resolve(name)
    assert caught.value.known == packaged_models()
    for known in packaged_models():
        assert known in str(caught.value)


def test_packaged_models_resolve_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in packaged_models():
        assert (resolve(name) / "config.json").is_file()


def test_a_folder_of_that_name_without_a_config_does_not_hide_a_packaged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in packaged_models():
        (tmp_path / name).mkdir()
        assert resolve(name).parent.name == "assets"
