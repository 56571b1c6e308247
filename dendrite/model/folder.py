"""Where a model lies: a folder on disk, or one of the models that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from dendrite.errors import ModelNotFound
from dendrite.model.config import CONFIG_FILE


def packaged_models() -> tuple[str, ...]:
    """Names of the models that come with the package, sorted."""
    assets = _assets()
    if not assets.is_dir():
        return ()
    return tuple(sorted(folder.name for folder in assets.iterdir() if (folder / CONFIG_FILE).is_file()))


def resolve(name_or_path: str | Path) -> Path:
    """The model folder of that path, or else the packaged model of that name.

    Raises:
        ModelNotFound: neither exists; names the packaged models.
    """
    path = Path(name_or_path).expanduser()
    if (path / CONFIG_FILE).is_file():
        return path
    known = packaged_models()
    if str(name_or_path) in known:
        return _assets() / str(name_or_path)
    raise ModelNotFound(str(name_or_path), known)


def _assets() -> Path:
    return Path(str(files("dendrite") / "assets"))
