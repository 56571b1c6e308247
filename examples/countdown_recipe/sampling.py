"""Batched sampling of derivations, and the solve rates that come of it."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from countdown_recipe.data import END, PAD
from countdown_recipe.settings import Settings
from dendrite.search.tasks.countdown import Countdown, problems

MAX_NEW = 80
"""Tokens of the longest derivation that is sampled; a drawn one has at most 61."""


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    tasks: list[Countdown],
    temperature: float,
    settings: Settings,
    deadline: float = math.inf,
) -> list[str]:
    """One derivation a task, in order; 0 is greedy.

    Past `deadline` (of `time.monotonic`) no batch is started, and the texts that were not made are missing at the end.
    """
    texts: list[str] = []
    choice: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        choice = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    for start in range(0, len(tasks), settings.sample_batch):
        if time.monotonic() > deadline:
            break
        prompts = [task.prompt.encode() for task in tasks[start : start + settings.sample_batch]]
        width = max(map(len, prompts))
        rows = np.array([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        tokens = torch.from_numpy(rows).to(model.device)
        mask = (tokens != PAD).long()
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=MAX_NEW, **choice)
        texts += [_text(row) for row in made[:, width:].tolist()]
    return texts


def _text(row: list[int]) -> str:
    end = row.index(END) if END in row else len(row)
    return bytes(token for token in row[:end] if token < END).decode(errors="replace")


def judge(tasks: list[Countdown], texts: list[str]) -> np.ndarray:
    """Rewards [N] float32 by the rule."""
    return np.array([task.reward(text) for task, text in zip(tasks, texts, strict=True)], np.float32)


def solve_rates(model: LlamaForCausalLM, settings: Settings) -> tuple[dict[str, Any], list[Countdown], list[str]]:
    """Solve rates on held-out problems, and the sampled derivations (`samples` in a row for each problem)."""
    tasks = problems(settings.test_problems, settings.seed, "test")
    start = time.monotonic()
    greedy = judge(tasks, sample(model, tasks, 0.0, settings))
    repeated = [task for task in tasks for _ in range(settings.samples)]
    texts = sample(model, repeated, 1.0, settings)
    sampled = judge(repeated, texts).reshape(len(tasks), settings.samples)
    groups = {
        "all": np.ones(len(tasks), bool),
        "3_numbers": np.array([len(task.numbers) == 3 for task in tasks]),
        "4_numbers": np.array([len(task.numbers) == 4 for task in tasks]),
    }
    report: dict[str, Any] = {"temperature": 1.0, "samples": settings.samples}
    for name, chosen in groups.items():
        if chosen.any():
            report[name] = {
                "problems": int(chosen.sum()),
                "greedy_pass_at_1": float(greedy[chosen].mean()),
                "sampled_pass_at_1": float(sampled[chosen].mean()),
                **{
                    f"sampled_pass_at_{k}": float(sampled[chosen, :k].max(axis=1).mean())
                    for k in (4, 16)
                    if k <= settings.samples
                },
            }
    legal = [task.answer(text) is not None for task, text in zip(repeated, texts, strict=True)]
    report["sampled_legal_and_complete"] = float(np.mean(legal))
    report["seconds"] = round(time.monotonic() - start, 1)
    print(f"  {json.dumps(report)}", flush=True)
    return report, repeated, texts
