"""The example configuration is one that this Ray Serve, and the application, accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from ray.serve.schema import ServeDeploySchema

from serve_apps.args import ServeArgs

PATH = Path(__file__).parents[1] / "serve_config.yaml"


def test_serve_and_the_application_accept_it() -> None:
    config: dict[str, Any] = yaml.safe_load(PATH.read_text())
    (application,) = ServeDeploySchema(**config).applications
    module, name = application.import_path.split(":")
    assert (module, name) == ("serve_apps.app", "build")
    assert ServeArgs(**application.args).model == "countdown"
