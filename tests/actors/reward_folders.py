"""Folders of small random sequence classifiers, and what plain transformers makes of a text with them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from dendrite.model.folder import resolve

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def write_classifier(folder: Path, *, family: str = "llama", labels: int = 1, **changes: Any) -> Path:
    """A classifier with random weights, large enough for scores to differ, and the packaged model's tokenizer."""
    settings = {"vocab_size": 264, "pad_token_id": 257, "num_labels": labels, **SIZES, **changes}
    config = AutoConfig.for_model(family, **settings)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
        if hasattr(model, "score"):
            model.score.weight.normal_(std=1.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(resolve("countdown") / name, folder / name)
    return folder


def write_merging_tokenizer(folder: Path) -> None:
    """Replace the tokenizer by one that merges letters across the places where thoughts end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=264, special_tokens=[], show_progress=False)
    tokenizer.train_from_iterator(["abcabcab", "cabbac", "abab", "bcbc", "aabbcc"] * 10, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


class Whole:
    """Scores each text by itself, whole, as a user of transformers would."""

    def __init__(self, folder: Path, positive: int | None = None) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.positive = positive

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def score(self, text: str) -> float:
        [logits] = self.model(**self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits
        if self.positive is None:
            return float(torch.sigmoid(logits[0]))
        return float(torch.softmax(logits, dim=0)[self.positive])
