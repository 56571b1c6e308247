"""8-bit weights and KV: perplexity and KL against bfloat16, the solve rate of a search, and on a GPU times and memory.

    python -m benchmarks.quant                                 the packaged model on held-out Countdown derivations
    python -m benchmarks.quant --problems 100                  and the solve rates of MCTS
    python -m benchmarks.quant --model DIR --data FILE         another model on a text
    python -m benchmarks.quant --device cuda --shape llama3-8b times and bytes, on random weights

Perplexities are per token, and compare with the checkpoint's own bfloat16 weights; `raw` states what was scored, and
what was computed in.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, write_result
from benchmarks.machine import hardware_name, installed
from benchmarks.models import SHAPES
from benchmarks.quant_accuracy import calibrated, countdown_corpus, perplexities, solve_rates, text_corpus
from benchmarks.quant_speed import kv_rates, weight_times
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer


def accuracy(given: argparse.Namespace, device: torch.device) -> tuple[str, dict[str, float], dict[str, Any]]:
    """Subject, metrics and raw figures of a model's perplexities, and of its searches where asked for."""
    folder = resolve(given.model)
    if given.data is None:
        corpus = countdown_corpus(given.documents)
    else:
        corpus = text_corpus(Tokenizer.from_folder(folder), given.data, given.window, given.stride or given.window // 2)
    metrics, raw = perplexities(folder, device, corpus)
    if given.problems:
        scales = calibrated(folder, device, corpus.calibration)
        rates, solved = solve_rates(folder, device, given.problems, given.tokens, scales, given.jobs)
        metrics, raw = metrics | rates, {**raw, "solved": solved}
    return folder.name, metrics, raw


def speed(given: argparse.Namespace, device: torch.device) -> tuple[str, dict[str, float], dict[str, Any]]:
    """Subject, metrics and raw figures of a shape's times and bytes."""
    metrics: dict[str, float] = {}
    raw: dict[str, Any] = {}
    if "weights" in given.parts:
        found, raw["weights"] = weight_times(given.shape, device, given.runs)
        metrics |= found
    if "kv" in given.parts:
        found, raw["kv"] = kv_rates(given.shape, device, given.runs, quantize=given.weights)
        metrics |= found
    whole = set(given.parts) == {"weights", "kv"}
    return given.shape if whole else f"{given.shape}-{given.parts[0]}", metrics, raw


def main() -> None:
    """Read the command line, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="countdown", help="a packaged model, or a Hugging Face folder")
    parser.add_argument("--data", type=Path, help="a text to score instead of Countdown derivations")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window of --data")
    parser.add_argument("--stride", type=int, help="from window to window; half a window by default")
    parser.add_argument("--documents", type=int, default=2000, help="Countdown derivations to score")
    parser.add_argument("--problems", type=int, default=0, help="held-out problems to search; 0 searches none")
    parser.add_argument("--tokens", type=int, default=512, help="budget of a search")
    parser.add_argument("--jobs", type=int, default=1, help="variants whose problems are searched at a time")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="measure times of this shape instead")
    parser.add_argument("--parts", nargs="+", choices=("weights", "kv"), default=("weights", "kv"), help="with --shape")
    parser.add_argument(
        "--weights", choices=("fp8",), help="of the model in --parts kv, where 16 bits leave no room for the KV"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--runs", type=int, default=5, help="with --shape")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    given = parser.parse_args()
    if given.runs < 1 or given.documents < 1 or given.problems < 0 or given.jobs < 1:
        parser.error("--runs, --jobs and --documents must be at least 1, --problems at least 0")
    if given.weights is not None and "kv" not in given.parts:
        parser.error("--weights needs --parts kv")
    if given.model != "countdown" and given.data is None and given.shape is None:
        parser.error("--model needs --data: derivations are the packaged model's language alone")
    device = torch.device(given.device)
    subject, metrics, raw = (speed if given.shape is not None else accuracy)(given, device)
    path = write_result(
        benchmark="quant",
        subject=subject,
        hardware=hardware_name(device),
        metrics=metrics,
        raw=raw,
        packages=installed(("triton", "flashinfer-python", "transformers")),
        folder=given.out,
    )
    for name, value in metrics.items():
        print(f"{name:36} {value:14,.5g}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
