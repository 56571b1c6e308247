"""`dendrite eval perplexity` and `dendrite quantize`, as a shell runs them, on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dendrite.cli import app
from dendrite.model.decoder import Decoder
from dendrite.quant.kv_scales import read_kv_scales
from tests.recompute import logits_by_recomputation
from tests.tiny_model import write_tiny_model

TEXT = "The quick brown fox jumps over the lazy dog. " * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def measure(*arguments: object) -> dict[str, Any]:
    return dict(json.loads(run("eval", "perplexity", *arguments, "--device", "cpu", "--json")))


def test_the_perplexity_of_one_window_is_that_of_the_logits(model: Path, text: Path) -> None:
    found = measure(model, "--data", text, "--window", 500)
    tokens = list(TEXT.encode())
    logits = logits_by_recomputation(Decoder.from_folder(model), tokens)
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:])).item()
    assert found["tokens"] == len(tokens) - 1
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found["window"], found["stride"], found["bos"]) == (500, 250, False)


def test_a_model_is_compared_with_another(model: Path, text: Path) -> None:
    same = measure(model, "--data", text, "--window", 32, "--stride", 8, "--against", model)
    assert same["ratio"] == 1
    assert same["kl"] == pytest.approx(0, abs=1e-7)
    assert same["agreement"] == 1
    small = measure(
        model,
        "--data",
        text,
        "--window",
        32,
        "--stride",
        8,
        "--against",
        model,
        "--quantize",
        "fp8",
        "--kv-dtype",
        "fp8",
    )
    assert small["against_perplexity"] == same["perplexity"]
    assert small["kl"] > 0
    assert small["weight_bytes"] < same["weight_bytes"] / 2


def test_a_table_is_for_people(model: Path, text: Path) -> None:
    assert "perplexity" in run("eval", "perplexity", model, "--data", text, "--device", "cpu")


@pytest.mark.parametrize("form", ["fp8", "mxfp8"])
def test_quantise_writes_a_folder_that_runs(model: Path, text: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "out"
    assert "bytes" in run("quantize", model, "--format", form, "--out", out, "--calibrate", text, "--device", "cpu")
    decoder = Decoder.from_folder(out)
    assert read_kv_scales(out, decoder.config) is not None
    found = measure(out, "--data", text, "--kv-dtype", "fp8", "--against", model)
    assert 0.8 < found["ratio"] < 1.25
    assert found["kl"] > 0


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("eval", "perplexity", "{model}", "--data", "{text}", "--bos"), "bos"),
        (("eval", "perplexity", "{model}", "--data", "missing.txt"), "data"),
        (("eval", "perplexity", "{model}", "--data", "{text}", "--stride", "600"), "stride"),
        (("eval", "perplexity", "{model}", "--data", "{text}", "--quantize", "int3"), "quantize"),
        (("eval", "perplexity", "{model}", "--data", "{text}", "--window", "4000"), "limit of 512"),
        (("quantize", "{model}", "--out", "{out}", "--format", "int3"), "format"),
        (("quantize", "{model}", "--out", "{out}", "--format", "mxfp8", "--scales", "tensor"), "scales"),
        (("quantize", "{model}", "--out", "{out}", "--calibrate", "missing.txt"), "calibrate="),
    ],
)
def test_wrong_usage_names_the_field(
    model: Path, text: Path, tmp_path: Path, arguments: tuple[str, ...], field: str, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"model": model, "text": text, "out": tmp_path / "out"}
    result = CliRunner().invoke(app, [part.format(**places) for part in arguments])
    assert result.exit_code in (1, 2)
    assert field in result.output + capfd.readouterr().err
