"""Train a language model of 63 M parameters on the sources of Python's standard library, from nothing.

    python examples/train_text.py --out DIR            # up to 6 minutes on one H100 or H200
    python examples/train_text.py --out DIR --smoke    # a tiny model, seconds on a CPU

It is a second model, beside the packaged one, to measure on: real text, a vocabulary of 16,384, and nothing downloaded.

1. Read the sources; a hash of its path keeps one file in twenty out.
2. Train a byte-level BPE on the rest, and a Llama on random windows of it, for `--minutes` or 12 times its length.
3. Save the weights in bfloat16, and measure the loss on the files kept out.

DIR is then a Hugging Face folder with `held_out.txt`, the text that training has not seen, and `training.json`:

    dendrite eval perplexity DIR --data DIR/held_out.txt --window 1024 --quantize fp8 --against DIR
    python -m benchmarks.quant --model DIR --data DIR/held_out.txt
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from text_recipe.settings import SMOKE, Settings
from text_recipe.text import encode, read_library, train_tokenizer
from text_recipe.trainer import measure, new_model, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, help=f"training time, default {Settings.minutes}")
    parser.add_argument("--seed", type=int, help=f"default {Settings.seed}")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and little of everything")
    arguments = parser.parse_args()
    given = {k: v for k in ("minutes", "seed") if (v := getattr(arguments, k)) is not None}
    settings = Settings(**{**asdict(SMOKE if arguments.smoke else Settings()), **given})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)

    library = read_library(settings)
    tokenizer = train_tokenizer(library.train, settings)
    seen, unseen = encode(tokenizer, library.train), encode(tokenizer, library.held_out)
    print(f"{len(library.train)} files of {len(seen):,} tokens, {len(library.held_out)} kept out", flush=True)
    model = new_model(settings, len(tokenizer), tokenizer.eos_token_id)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"training {parameters / 1e6:.1f} M parameters for up to {settings.minutes} minutes", flush=True)
    trained = train(model, seen, settings, device)

    model.to(torch.bfloat16)
    loss = measure(model, unseen, settings, device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.out)
    model.cpu().save_pretrained(arguments.out)
    (arguments.out / "held_out.txt").write_text("\n".join(library.held_out), encoding="utf-8")
    report = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU ({platform.machine()})",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "parameters": parameters,
        "settings": asdict(settings),
        "files": {"train": len(library.train), "held_out": len(library.held_out)},
        "tokens": {"train": len(seen), "held_out": len(unseen)},
        "training": trained,
        "held_out_loss": loss,
    }
    (arguments.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"loss on the files kept out: {loss:.3f}; written to {arguments.out}", flush=True)


if __name__ == "__main__":
    main()
