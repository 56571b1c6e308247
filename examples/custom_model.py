"""A model folder of your own, checked: Dendrite must write what transformers writes, token for token.

Without a folder, transformers makes a tiny Llama of random weights. Run it with
`python examples/custom_model.py [FOLDER]`, where FOLDER is any Hugging Face folder of a Llama, Mistral, Qwen2 or Qwen3.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from dendrite import DendriteError, Engine

PROMPT_TOKENS, NEW_TOKENS = 40, 24


def make_folder(folder: Path) -> None:
    """Write a Llama of two small random layers, with grouped queries, as transformers saves any model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=256)).save_pretrained(folder)


def by_transformers(folder: Path) -> tuple[list[int], list[int]]:
    """A random prompt, and the most likely tokens that follow it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = Random(0).choices(range(model.config.vocab_size), k=PROMPT_TOKENS)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return prompt, ids[0, PROMPT_TOKENS:].tolist()


def by_dendrite(folder: Path, prompt: list[int]) -> list[int]:
    """The same from a fork of the prompt; ids instead of text, for which the folder needs no tokenizer."""
    with Engine.from_pretrained(folder, device="cpu", dtype="float32", kv_tokens=4_096) as engine:
        root = engine.prefill(prompt)
        engine.decode(branch := root.fork()[0], max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
        root.release(subtree=True)
        return branch.tokens


def main(args: Sequence[str] | None = None) -> bool:
    """Compare the two; return whether they agree."""
    parser = argparse.ArgumentParser(description="Check that Dendrite decodes a model folder as transformers does.")
    parser.add_argument("folder", type=Path, nargs="?", help="Hugging Face folder; a tiny random one without it")
    given: Path | None = parser.parse_args(args).folder
    if given is not None and not given.is_dir():
        parser.error(f"no folder at {given}")
    logging.disable_progress_bar()
    with TemporaryDirectory() as made:
        folder = given or Path(made)
        try:
            if given is None:
                make_folder(folder)
            prompt, expected = by_transformers(folder)
            found = by_dendrite(folder, prompt)
        except (OSError, ValueError, DendriteError) as error:  # transformers' and Dendrite's ways to refuse a folder
            raise SystemExit(f"{folder} cannot be loaded: {error}") from None
    print(f"transformers: {expected}\ndendrite:     {found}")
    print("the same" if found == expected else "they differ")
    return found == expected


if __name__ == "__main__":
    main()
