"""The layers import in one direction only: dendrite ← actors ← serve_apps. Importing dendrite stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FORBIDDEN = {
    "dendrite": {"ray", "actors", "serve_apps"},
    "actors": {"serve_apps"},
}


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a module imports, in functions and under TYPE_CHECKING too."""
    found = set()
    for item in ast.walk(ast.parse(source)):
        if isinstance(item, ast.Import):
            found.update(alias.name.split(".")[0] for alias in item.names)
        elif isinstance(item, ast.ImportFrom) and item.level == 0 and item.module:
            found.add(item.module.split(".")[0])
        elif isinstance(item, ast.Call) and _is_dynamic_import(item):
            argument = item.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value.split(".")[0])
    return found


def _is_dynamic_import(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in {"import_module", "__import__"} and bool(call.args)


def loaded_after(statement: str) -> set[str]:
    """Modules in `sys.modules` of a fresh interpreter that has run one statement."""
    script = f"import sys; {statement}; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import ray.util", "from ray import remote", "def f():\n  import ray"])
def test_an_import_is_seen_wherever_it_stands(statement: str) -> None:
    assert "ray" in imported_packages(statement)


def test_a_dynamic_import_is_seen() -> None:
    assert "ray" in imported_packages("import importlib\nimportlib.import_module('ray.util')")


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_import_points_up_a_layer(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    offences = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in modules
        if (wrong := imported_packages(path.read_text()) & FORBIDDEN[package])
    }
    assert not offences


def test_importing_dendrite_loads_nothing_heavy() -> None:
    heavy = {"ray", "torch", "transformers", "flashinfer", "numpy", "pydantic"}
    assert not loaded_after("import dendrite") & heavy


def test_the_engine_runs_without_ray_or_gpu_kernels() -> None:
    loaded = loaded_after("from dendrite import Engine")
    assert not loaded & {"ray", "flashinfer"}
    assert "transformers.modeling_utils" not in loaded


def test_every_public_name_resolves() -> None:
    loaded_after("import dendrite; [getattr(dendrite, name) for name in dendrite.__all__]")
