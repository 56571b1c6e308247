"""What import-linter can't see of the layers: packages imported by name, and what is loaded when.

The contracts in pyproject.toml say which module may import which; `make lint` checks them.
"""

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


def packages_imported_by_name(source: str) -> set[str]:
    """Top-level packages that a module hands to `import_module` or `__import__` as text."""
    calls = (item for item in ast.walk(ast.parse(source)) if isinstance(item, ast.Call) and _is_dynamic_import(item))
    names = (call.args[0] for call in calls)
    texts = (name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str))
    return {text.split(".")[0] for text in texts}


def _is_dynamic_import(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return name in {"import_module", "__import__"} and bool(call.args)


def loaded_after(statement: str) -> set[str]:
    """Modules in `sys.modules` of a fresh interpreter that has run one statement."""
    script = f"import sys; {statement}; print(*sorted(sys.modules))"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("call", ["importlib.import_module('ray.util')", "import_module('ray')", "__import__('ray')"])
def test_an_import_by_name_is_seen(call: str) -> None:
    assert packages_imported_by_name(f"def f():\n  return {call}") == {"ray"}


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_import_by_name_points_up_a_layer(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    offences = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in modules
        if (wrong := packages_imported_by_name(path.read_text()) & FORBIDDEN[package])
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
