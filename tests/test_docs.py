"""The documentation's code is code: it compiles, its imports and its commands exist, and it runs."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dendrite.cli import app
from dendrite.search import ALGORITHMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("dendrite", "actors", "serve_apps")
# What a block needs that speaks of these is not there in a test: a cluster, a server.
NEEDS_MORE = re.compile(r"\bactors\b|http://|with_reward_model")
FENCE = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in a language, each with the line before its first."""
    text = page.read_text()
    found = [match for match in FENCE.finditer(text) if match["language"] == language]
    return [(text.count("\n", 0, match.start("code")), match["code"]) for match in found]


def parse(page: Path, line: int, code: str) -> ast.Module:
    """Parse a block, with the page's own line numbers in errors and tracebacks."""
    tree = ast.parse(code, name_of(page))
    ast.increment_lineno(tree, line)
    return tree


def imported(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Modules of ours that a block imports, with the names that it takes from them."""
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            yield from ((alias.name, None) for alias in item.names)
        elif isinstance(item, ast.ImportFrom) and item.module:
            yield from ((item.module, alias.name) for alias in item.names)


def bound_in(module: str) -> set[str]:
    """What can be imported from a module of ours, read from its text: to import it would load torch, or Ray."""
    path = ROOT.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    names = {each.stem for each in path.glob("*") if path.is_dir()}
    body = list(ast.parse(file.read_text()).body)
    for item in body:  # grows while it is walked
        if isinstance(item, ast.If):
            body += item.body
        elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(item.name)
        elif isinstance(item, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in item.names)
        else:
            names.update(
                part.id for part in ast.walk(item) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            )
    return names


def commands(page: Path) -> Iterator[list[str]]:
    """The words after `dendrite` of each command in a page's shell blocks."""
    for _, code in blocks(page, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            start = line.find("dendrite ")
            if start == 0 or line[:start].endswith(" -- "):  # by itself, or as what `ray job submit` is to run
                yield shlex.split(line[start:], comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_s_imports_exist(page: Path) -> None:
    for line, code in blocks(page, "python"):
        for module, name in imported(parse(page, line, code)):
            if module.split(".")[0] in OURS:
                assert name in {None, *bound_in(module)}, f"{name_of(page)}:{line}: {module} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_command_and_its_options_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        assert not getattr(command, "commands", {}), f"{name_of(page)}: dendrite {' '.join(words)}: no such command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert given <= known, f"{name_of(page)}: dendrite {' '.join(words)}: no option {given - known}"


def test_there_are_commands_and_blocks() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 10
    assert sum(len(blocks(page, "python")) for page in PAGES) > 20


def test_every_algorithm_is_described() -> None:
    text = (ROOT / "docs" / "algorithms.md").read_text()
    described = {name.strip() for line in re.findall(r"^## (.*)$", text, re.MULTILINE) for name in line.split(",")}
    assert set(ALGORITHMS) <= described


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_a_page_s_blocks_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        if not NEEDS_MORE.search(code):
            exec(compile(parse(page, line, code), name_of(page), "exec"), names)
