"""The byte tokenizer, and endless random derivations as training rows."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from dendrite.search.tasks.countdown import Countdown, draw, split_of

END, PAD, VOCABULARY = 256, 257, 264
"""Ids below 256 are bytes; then the end of a sequence and padding; the rest fills up a round number."""
CONTEXT = 112
"""Tokens of a training row. The rare longer derivation is left out."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, its id the byte's value: any text can be written, and digits never merge."""
    letters = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in letters]
    character = {b: chr(b) for b in letters} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={character[b]: b for b in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved_{i}|>" for i in range(VOCABULARY - PAD - 1)]
    tokenizer.add_special_tokens(["<|end|>", "<|pad|>", *reserved])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


class Derivations(IterableDataset):  # type: ignore[type-arg]
    """Endless batches of (inputs [batch, CONTEXT], targets [batch, CONTEXT]) int16; -100 where no loss is due."""

    def __init__(self, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        rng = Random(f"derivations {self.seed} {worker.id if worker else 0}")
        while True:
            rows = np.full((self.batch, CONTEXT + 1), PAD, np.int16)
            targets = np.full((self.batch, CONTEXT), -100, np.int16)
            for row, target in zip(rows, targets, strict=True):
                prompt, lines = self._example(rng)
                start, end = len(prompt), len(prompt) + len(lines)
                row[:end] = np.frombuffer(prompt + lines, np.uint8)
                row[end] = END
                target[start - 1 : end] = row[start : end + 1]
            yield torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(targets)

    def _example(self, rng: Random) -> tuple[bytes, bytes]:
        while True:
            numbers, target, lines = draw(rng)
            prompt = Countdown(numbers, target).prompt
            if len(prompt) + len(lines) <= CONTEXT and split_of(numbers, target) == "train":
                return prompt.encode(), lines.encode()
