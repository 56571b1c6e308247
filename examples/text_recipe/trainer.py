"""Training of the language model, limited by time and by the length of the text."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from text_recipe.settings import Settings

_REPORTS = 20


def new_model(settings: Settings, vocabulary: int, end: int) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.hidden // settings.heads,
        max_position_embeddings=settings.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end)
    return model


def train(model: LlamaForCausalLM, tokens: Tensor, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Train on random windows of `tokens` [N] until the time or the text is used up; what came of it, for the record.

    The learning rate follows the larger of both shares, so that it has fallen to zero at the end.
    """
    model.to(device).train()
    tokens = tokens.to(device)
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.peak_lr, betas=(0.9, 0.95), fused=device.type == "cuda")
    draws = torch.Generator(device).manual_seed(settings.seed)
    history: list[dict[str, float]] = []
    most = max(1.0, settings.epochs * len(tokens) / (settings.batch * settings.context))
    steps, begin = 0, time.monotonic()
    while (passed := max((time.monotonic() - begin) / (60 * settings.minutes), steps / most)) < 1 or not steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.peak_lr * schedule(min(passed, 1.0), settings.warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = window_loss(model, draw(tokens, settings, draws))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if passed * _REPORTS >= len(history):
            history.append({"seconds": round(time.monotonic() - begin, 1), "step": steps, "loss": loss.item()})
            print(f"  step {steps}: loss {history[-1]['loss']:.3f}", flush=True)
    trained = steps * settings.batch * settings.context
    return {"steps": steps, "tokens": trained, "seconds": round(time.monotonic() - begin, 1), "history": history}


@torch.inference_mode()
def measure(model: LlamaForCausalLM, tokens: Tensor, settings: Settings, device: torch.device) -> float:
    """Mean natural-log loss of [N] tokens in windows that do not overlap, the first token of each left out."""
    model.eval()
    size = min(settings.context, len(tokens))
    windows = tokens[: len(tokens) // size * size].view(-1, size)
    losses = [window_loss(model, rows.to(device).long()) * len(rows) for rows in windows.split(settings.batch)]
    return float(torch.stack(losses).sum()) / len(windows)


def schedule(passed: float, warmup: float) -> float:
    """Share of the peak learning rate: linear up, then down along half a cosine."""
    if passed < warmup:
        return max(passed / warmup, 0.01)
    return 0.5 * (1 + math.cos(math.pi * (passed - warmup) / (1 - warmup)))


def draw(tokens: Tensor, settings: Settings, draws: torch.Generator) -> Tensor:
    """Random windows [batch, context] int64."""
    size = settings.context
    starts = torch.randint(len(tokens) - size, (settings.batch, 1), generator=draws, device=tokens.device)
    return tokens[starts + torch.arange(size, device=tokens.device)].long()


def window_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Mean loss of every token of [batch, size] but the first of each window."""
    logits = model(windows[:, :-1]).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
