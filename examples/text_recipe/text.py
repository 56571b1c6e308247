"""The sources of Python's standard library as text, and a byte-level BPE for it."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from text_recipe.settings import Settings

END = "<|end|>"
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib"}


@dataclass(frozen=True)
class Library:
    """Files of both splits, as text, in the order of their paths."""

    train: list[str]
    held_out: list[str]


def read_library(settings: Settings) -> Library:
    """Read what this Python has of its standard library, its tests included where they are installed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = Library([], [])
    count = 0
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _LEFT_OUT.intersection(relative.parts):
            continue
        if settings.files is not None and count == settings.files:
            break
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):  # some tests are of other encodings on purpose
            continue
        count += 1
        bucket = int.from_bytes(hashlib.sha256(relative.as_posix().encode()).digest()[:8], "big") % 100
        (found.held_out if bucket < settings.held_out else found.train).append(text)
    if not found.train or not found.held_out:
        raise RuntimeError(
            f"{root} holds too few sources: {len(found.train)} to train on, {len(found.held_out)} held out"
        )
    return found


def train_tokenizer(texts: Sequence[str], settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts: any text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts as one row of ids [N] int32, each behind the token that ends one."""
    backend = tokenizer.backend_tokenizer
    end = int(backend.token_to_id(END))
    rows = [np.array([end, *found.ids], np.int32) for found in backend.encode_batch(list(texts))]
    return torch.from_numpy(np.concatenate(rows))
