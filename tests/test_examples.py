"""Every example runs and does what its text promises. Most run in this process, which has torch loaded already."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import nbformat
import pytest
from nbclient import NotebookClient

from dendrite.search.tasks.countdown import Countdown
from tests.serve_apps.serving import Served, serve

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HELPERS = {"serving.py"}
# Training takes much longer than a test may; what makes the packaged model has tests of its own.
RUN_ELSEWHERE = {"train_countdown.py", "train_text.py"}
MOST_LINES = 80

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import an example by its name, with its folder on the path, as it is when it is run."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


def test_every_example_is_short_and_says_how_to_run_it() -> None:
    for path in EXAMPLES.glob("*.py"):
        if path.name in RUN_ELSEWHERE | HELPERS:
            continue
        text = path.read_text()
        assert text.count("\n") < MOST_LINES, path.name
        assert f"`python examples/{path.name}" in " ".join(text.split('"""')[1].split()), path.name


def test_the_gallery_lists_every_example() -> None:
    gallery = (EXAMPLES / "README.md").read_text()
    listed = set(re.findall(r"^\| \[([\w.]+)\]", gallery, re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}} - HELPERS
    assert "(examples/README.md)" in (ROOT / "README.md").read_text()


def test_fork(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    texts = load("fork").main()
    assert len(texts) == 4
    assert len({text[0] for text in texts}) == 1
    assert len(capsys.readouterr().out.splitlines()) == 8 + 1 + 4


def test_search_keeps_to_a_rule_of_ones_own(load: Load) -> None:
    example = load("search")
    result = example.main()
    assert result.text.count("*") <= 1 or not result.solved
    assert result.reward == example.Frugal().reward(result.text)
    assert 0 < result.tokens <= 4_000


def test_beam_shows_its_levels(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("beam")
    result = example.main()
    told = capsys.readouterr().out
    assert "step 1: 8 different lines" in told
    assert told.split("step 2")[0].count("->") == 4
    assert result.reward == example.TASK.reward(result.text)


def test_ask_and_tell_shortens_the_tour(load: Load) -> None:
    example = load("ask_tell")
    tour = example.main()
    assert sorted(tour) == sorted(example.START)
    assert example.length(tour) < 0.8 * example.length(example.START)


def test_json_branches_are_valid(load: Load) -> None:
    example = load("json_branches")
    documents = example.main()
    assert len(documents) == 9
    for document in documents:
        jsonschema.validate(json.loads(document), example.SCHEMA)
    start = len('{"operation":')
    assert {document[:start] for document in documents} == {documents[0][:start]}


def test_a_job_is_taken_up_again(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    contents = load("job").main()
    told = capsys.readouterr().out
    assert told.index("6 problems to go") < told.index("3 problems to go") < told.index("6 problems have one result")
    assert contents.lines == len(contents.entries) == 6


def test_a_cluster_searches(load: Load, ray_here: None) -> None:
    results = load("cluster").main()
    assert len(results) == 3
    assert any(result.solved for result in results)


def test_a_custom_model_agrees_with_transformers(load: Load, tmp_path: Path) -> None:
    example = load("custom_model")
    assert example.main([]) is True
    with pytest.raises(SystemExit, match="2"):
        example.main([str(tmp_path / "nowhere")])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="cannot be loaded"):
        example.main([str(tmp_path)])


def test_an_agent_computes_with_its_tool(load: Load) -> None:
    example = load("agent")
    assert example.calculator("25*4=", (4, 8, 25)) == (100, (8, 100))
    for refused in ("25*5=", "4-8=", "25/4=", "4+4="):
        with pytest.raises(ValueError, match=r".+"):
            example.calculator(refused, (4, 8, 25))
    with_tool, alone = example.main([Countdown((5, 11, 77, 98), target=181)])
    assert (with_tool, alone) == (1, 0)


def test_many_samples_agree_and_share_their_prompt(load: Load) -> None:
    example = load("self_consistency")
    found = example.main(["48"])
    assert all(eval(answer) == example.TASK.target for answer, _ in found.answers.most_common(1))
    assert 0 < found.pages < 0.75 * found.pages_apart
    with pytest.raises(SystemExit, match="2"):
        example.main(["0"])


def test_branches_are_streamed(load: Load, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    texts = load("streaming_http").main(["--url", served.url])
    assert len(texts) == 3
    assert all(re.match(r"\d+[-+*/]\d+=", text) for text in texts)
    assert capsys.readouterr().out.count("  node ") > 7 * 2
    served.wait_for_pages(0, 1.0)


def test_openai_s_client_is_served(load: Load, served: Served) -> None:
    example = load("openai_client")
    found = example.main(["--url", served.url])
    assert len(found["choices"]) == 8
    assert found["stream"].endswith("\n")
    jsonschema.validate(found["document"], example.SCHEMA)
    assert Countdown((3, 7, 8, 25), target=92).reward(found["search"]) == 1.0
    served.wait_for_pages(0, 1.0)


def test_a_search_is_watched_live(load: Load, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"kind": "countdown", "numbers": [3, 4, 50], "target": 62}
    outcome = load("live_ui").main(["--url", served.url], problem)
    assert outcome.solved
    told = capsys.readouterr().out
    assert f"watch it at {served.url}/ui#search_" in told
    assert len(told.splitlines()) > outcome.nodes


def test_a_server_that_is_not_there_is_said(load: Load) -> None:
    with pytest.raises(SystemExit, match=r"no Dendrite server answers at http://127\.0\.0\.1:9"):
        load("streaming_http").main(["--url", "http://127.0.0.1:9"])


def test_the_live_page_is_served_until_ctrl_c() -> None:
    process = start("live_ui.py")
    try:
        assert process.stdout is not None
        link = process.stdout.readline().split()[-1]
        assert httpx.get(link, timeout=60.0).status_code == 200
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode in (0, 130), complaints  # 0 where the search has ended already
    assert "Traceback" not in complaints
    with pytest.raises(httpx.ConnectError):
        httpx.get(link)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLES / "trace_analysis.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    told = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "times as many" in told
    assert any("image/png" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", ()))


def start(example: str, *args: str) -> subprocess.Popen[str]:
    """Run an example as a reader would."""
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_text_model_is_trained_quantised_and_measured(tmp_path: Path) -> None:
    """In small: the folder that comes of it is read, and the text kept out scored."""
    out = tmp_path / "model"
    train = [sys.executable, str(EXAMPLES / "train_text.py"), "--out", str(out), "--smoke", "--minutes", "0.05"]
    trained = subprocess.run(
        train, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True
    )
    assert "kept out: " in trained.stdout
    command = [sys.executable, "-m", "dendrite", "eval", "perplexity", str(out), "--data", str(out / "held_out.txt")]
    text = (out / "held_out.txt").read_text()[:2_000]
    (out / "held_out.txt").write_text(text)
    options = ["--window", "64", "--quantize", "fp8", "--against", str(out), "--device", "cpu", "--json"]
    done = subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["tokens"] > 200
    assert 0.95 < found["ratio"] < 1.05


def test_eight_bits_take_half_the_memory_and_hardly_change_the_model(load: Load) -> None:
    found = load("eight_bits").main()
    assert found["fp8"].weight_bytes < 0.6 * found["bf16"].weight_bytes
    assert found["fp8"].page_bytes == 0.5 * found["bf16"].page_bytes
    assert found["fp8"].perplexity < 1.01 * found["bf16"].perplexity
