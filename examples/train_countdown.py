"""Train the small Countdown model that is packaged with Dendrite, and its value head, from nothing.

    python examples/train_countdown.py --out DIR            # about 8 minutes on one H100 or H200
    python examples/train_countdown.py --out DIR --smoke    # a tiny model, about a minute on a CPU

1. Train a Llama of 4.5 M parameters on random derivations, made by worker processes as training goes (none is seen
   twice on purpose, no held-out problem ever), for `--minutes`; the loss is on the derivation only.
2. Round the weights to bfloat16 and save them; all that follows runs these weights in float32, as Dendrite does on CPU.
3. Measure greedy and sampled solve rates on held-out problems.
4. Sample the model's own derivations of training problems, judge them by rule, and fit the value head: from the final
   hidden state at the end of the prompt or of a line, the probability that the derivation will reach its target.

DIR is then a Hugging Face folder with `value_head.safetensors`, a model card and every figure in `training.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a checkout
from countdown_recipe.data import PAD, Derivations, byte_tokenizer
from countdown_recipe.report import write_card
from countdown_recipe.sampling import solve_rates
from countdown_recipe.settings import SMOKE, Settings
from countdown_recipe.trainer import Trainer
from countdown_recipe.value import train_value_head
from dendrite.search.tasks import countdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, help=f"training time, default {Settings.minutes}")
    parser.add_argument("--seed", type=int, help=f"default {Settings.seed}")
    parser.add_argument("--workers", type=int, default=max(0, min(12, (os.cpu_count() or 1) - 3)))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--smoke", action="store_true", help="a tiny model and little of everything")
    arguments = parser.parse_args()
    given = {k: v for k in ("minutes", "seed") if (v := getattr(arguments, k)) is not None}
    settings = Settings(**{**asdict(SMOKE if arguments.smoke else Settings()), **given})
    begin = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)

    print("training", flush=True)
    trainer = Trainer(settings, device, arguments.workers)
    model = trainer.run(arguments.compile)
    save_model(model, arguments.out)
    report = describe(settings, trainer, device, arguments)
    write_card(arguments.out, report)

    print("measuring", flush=True)
    model = load_model(arguments.out, device)
    report["solve_rates"], tasks, texts = solve_rates(model, settings)
    write_card(arguments.out, report)

    print("value head", flush=True)
    report["value_head"] = train_value_head(model, settings, arguments.out, (tasks, texts))
    report["total_seconds"] = round(time.monotonic() - begin, 1)
    write_card(arguments.out, report)
    shown = {k: {n: v for n, v in r.items() if n != "calibration"} for k, r in report["value_head"]["held_out"].items()}
    print(f"  {json.dumps(shown)}\ndone in {report['total_seconds']} s: {arguments.out}", flush=True)


def describe(
    settings: Settings, trainer: Trainer, device: torch.device, arguments: argparse.Namespace
) -> dict[str, Any]:
    examples = trainer.steps * settings.batch
    inputs, _ = next(iter(Derivations(1024, settings.seed + 1)))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "parameters": sum(p.numel() for p in trainer.model.parameters()) / 1e6,
        "settings": asdict(settings),
        "problems": {
            "max_number": countdown.MAX_NUMBER,
            "targets": countdown.TARGETS,
            "max_result": countdown.MAX_RESULT,
            "four_numbers": countdown.FOUR_NUMBERS,
            "test_percent": countdown.TEST_PERCENT,
            "validation_percent": countdown.VALIDATION_PERCENT,
        },
        "training": {
            "seconds": round(trainer.seconds, 1),
            "compile_seconds": round(trainer.compile_seconds, 1),
            "compiled": trainer.compiled,
            "workers": arguments.workers,
            "steps": trainer.steps,
            "kept_step": trainer.kept_step,
            "kept_greedy_on_validation": trainer.kept_greedy,
            "examples": examples,
            "tokens": int(examples * (inputs != PAD).sum().item() / len(inputs)),
            "history": trainer.history,
        },
    }


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save_pretrained(out)
    model.to(torch.bfloat16).save_pretrained(out)


def load_model(out: Path, device: torch.device) -> LlamaForCausalLM:
    """The saved folder as others load it, in float32; also checks that the tokenizer maps bytes to themselves."""
    text = 'Numbers: 3 7 8 25. Target: 99.\n25*4=100 (1 100)\n"é€😀'
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(text)["input_ids"]
    if ids != list(text.encode()) or tokenizer.decode(ids) != text:
        raise RuntimeError(f"the tokenizer does not write bytes: {ids}")
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).to(device).eval()


if __name__ == "__main__":
    main()
