"""The value head: its data, its fit, and how well it tells solved from unsolved."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from countdown_recipe.data import PAD
from countdown_recipe.sampling import judge, sample
from countdown_recipe.settings import Settings
from dendrite.search.tasks.countdown import Countdown, problems


def train_value_head(
    model: LlamaForCausalLM, settings: Settings, out: Path, tests: tuple[list[Countdown], list[str]]
) -> dict[str, Any]:
    """Fit the head on the model's own derivations of training problems, save it, and judge it on held-out ones."""
    start = time.monotonic()
    chosen = problems(settings.rollout_problems, settings.seed, "train")
    tasks = [task for task in chosen for _ in range(settings.rollouts)]
    Random(settings.seed).shuffle(tasks)  # a cut by the deadline then takes from all alike
    texts = sample(model, tasks, 1.0, settings, start + settings.rollout_seconds)
    tasks = tasks[: len(texts)]
    rewards = judge(tasks, texts)
    print(f"  {len(tasks)} rollouts in {time.monotonic() - start:.0f} s, {rewards.mean():.3f} solved", flush=True)
    data = prefixes(model, tasks, texts, rewards.tolist(), settings.sample_batch)
    head, epochs = fit_value_head(data, settings)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, out / "value_head.safetensors", metadata={"format": "pt"})
    test_rewards = judge(*tests)
    held_out = prefixes(model, *tests, test_rewards.tolist(), settings.sample_batch)
    return {
        "rollouts": len(tasks),
        "problems": len(chosen),
        "solved": float(rewards.mean()),
        "prefixes": len(data.states),
        "epochs": epochs,
        "seconds": round(time.monotonic() - start, 1),
        "held_out": judge_value_head(head, held_out),
    }


class ValueHead(nn.Module):
    """sigmoid(out(silu(dense(hidden)))), as `dendrite.model.value_head` computes it; here without the sigmoid."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [N] of hidden states [N, width]."""
        logits: Tensor = self.out(functional.silu(self.dense(states))).squeeze(-1)
        return logits


@dataclass(frozen=True)
class Prefixes:
    """Ends of prompts and lines: hidden states [N, d], final rewards [N], and lines still to be written [N]."""

    states: Tensor
    rewards: Tensor
    to_go: Tensor


@torch.inference_mode()
def prefixes(
    model: LlamaForCausalLM, tasks: list[Countdown], texts: list[str], rewards: list[float], batch: int
) -> Prefixes:
    states: list[Tensor] = []
    labels: list[float] = []
    lines_to_go: list[int] = []
    for start in range(0, len(tasks), batch):
        part = range(start, min(start + batch, len(tasks)))
        rows, where = np.full((len(part), 128), PAD), []
        for row, i in enumerate(part):
            encoded = (tasks[i].prompt + texts[i]).encode()[:128]
            rows[row, : len(encoded)] = list(encoded)
            ends = [k for k, byte in enumerate(encoded) if byte == ord("\n")]
            depth = tasks[i].max_depth
            where += [(row, k, rewards[i], depth - lines) for lines, k in enumerate(ends[: depth + 1])]
        hidden = model.model(input_ids=torch.from_numpy(rows).to(model.device), use_cache=False)
        row_ids, positions, outcomes, to_go = zip(*where, strict=True)
        states.append(hidden.last_hidden_state[list(row_ids), list(positions)].float())
        labels += outcomes
        lines_to_go += to_go
    device = model.device
    return Prefixes(torch.cat(states), torch.tensor(labels, device=device), torch.tensor(lines_to_go, device=device))


def fit_value_head(data: Prefixes, settings: Settings) -> tuple[ValueHead, int]:
    """Minimise the binary cross-entropy of the final reward; returns the head and the epochs run."""
    head = ValueHead(settings.hidden, settings.value_hidden).to(data.states.device)
    batch = min(8_192, len(data.states))
    steps_per_epoch = len(data.states) // batch
    steps = settings.value_epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    deadline = time.monotonic() + settings.value_seconds
    states, rewards = data.states.clone(), data.rewards.clone()  # out of inference mode
    epochs = 0
    while epochs < settings.value_epochs and time.monotonic() < deadline:
        order = torch.randperm(len(states), device=states.device)
        for part in order[: batch * steps_per_epoch].split(batch):
            loss = functional.binary_cross_entropy_with_logits(head(states[part]), rewards[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        epochs += 1
    print(f"  value head: {epochs} epochs, loss {loss.item():.4f}", flush=True)
    return head, epochs


@torch.inference_mode()
def judge_value_head(head: ValueHead, data: Prefixes) -> dict[str, Any]:
    """AUC, Brier score and calibration over all prefixes that are not complete, and by lines still to be written."""
    value = torch.sigmoid(head(data.states)).cpu().numpy()
    reward, to_go = data.rewards.cpu().numpy(), data.to_go.cpu().numpy()
    report = {"incomplete": _scores(value[to_go > 0], reward[to_go > 0])}
    for lines in sorted(set(to_go.tolist())):
        report[f"{lines}_lines_to_go"] = _scores(value[to_go == lines], reward[to_go == lines])
    return report


def _scores(value: np.ndarray, reward: np.ndarray) -> dict[str, Any]:
    _, inverse, counts = np.unique(value, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    good = int(reward.sum())
    bad = len(reward) - good
    auc = (ranks[reward > 0].sum() - good * (good + 1) / 2) / (good * bad) if good and bad else None
    bins = np.minimum((value * 10).astype(int), 9)
    table = []
    for chosen in (bins == b for b in range(10)):
        if chosen.any():
            means = {"value": float(value[chosen].mean()), "solved": float(reward[chosen].mean())}
            table.append({"n": int(chosen.sum()), **means})
    error = sum(row["n"] * abs(row["value"] - row["solved"]) for row in table) / len(value)
    return {
        "n": len(value),
        "auc": auc,
        "brier": float(np.mean((value - reward) ** 2)),
        "brier_of_mean": float(reward.mean() * (1 - reward.mean())),
        "calibration_error": error,
        "calibration": table,
    }
