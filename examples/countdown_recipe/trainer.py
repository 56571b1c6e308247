"""Training of the language model, limited by time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from countdown_recipe.data import END, PAD, VOCABULARY, Derivations
from countdown_recipe.sampling import judge, sample
from countdown_recipe.settings import Settings
from dendrite.search.tasks.countdown import problems


def new_model(settings: Settings) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=settings.hidden,
        intermediate_size=settings.ffn,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    return model


def token_loss(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = functional.linear(hidden, head).float()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long(), ignore_index=-100)


@dataclass
class Trainer:
    """Trains at a steady rate until the greedy solve rate reaches the aim or time runs short; then the rate decays.

    Keeps the last weights whose greedy solve rate was within the ceiling.
    """

    settings: Settings
    device: torch.device
    workers: int
    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    compiled: bool = False
    kept_step: int = 0
    kept_greedy: float = 0.0
    decay_start: float = math.inf
    decay_end: float = math.inf

    def run(self, want_compile: bool) -> LlamaForCausalLM:
        settings = self.settings
        data = iter(self._loader())
        first = next(data)  # the workers fork before CUDA starts
        self.model = new_model(settings).to(self.device)
        self.probe_model = new_model(settings).to(self.device).eval()
        self.tasks = problems(settings.probe_problems, settings.seed, "validation")
        self.loss = token_loss
        self._compile(first, want_compile)
        self.optimizer = self._optimizer()
        self.kept = self._weights()
        limit, start, last_probe = settings.minutes * 60, time.monotonic(), 0.0
        while (elapsed := time.monotonic() - start) < min(limit, self.decay_end):
            if self.decay_start == math.inf and elapsed > limit / (1 + settings.decay):
                self._start_decay(elapsed)
            loss = self._step(next(data), self._rate(elapsed))
            if self.steps % 50 == 0:
                value = loss.item()  # waits for the device, so that the clock is true
                if self.steps % 1000 == 0:
                    print(f"  {elapsed:5.0f} s  step {self.steps}  loss {value:.4f}", flush=True)
                if time.monotonic() - start - last_probe > settings.probe_seconds:
                    self._probe(value, time.monotonic() - start)
                    last_probe = time.monotonic() - start
        self.seconds = time.monotonic() - start
        self._probe(loss.item(), self.seconds)
        self.model.load_state_dict(self.kept)
        return self.model

    def _loader(self) -> DataLoader[Any]:
        data = Derivations(self.settings.batch, self.settings.seed)
        pin = self.device.type == "cuda"
        ahead = 8 if self.workers else None
        return DataLoader(data, batch_size=None, num_workers=self.workers, pin_memory=pin, prefetch_factor=ahead)

    def _optimizer(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": self.settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=self.device.type == "cuda")

    def _compile(self, batch: tuple[Tensor, Tensor], wanted: bool) -> None:
        """Compile each layer (they share one graph) and the loss; go on without if that fails."""
        start = time.monotonic()
        if wanted:
            try:
                for layer in self.model.model.layers:
                    layer.compile()
                self.loss = torch.compile(token_loss)
                self._forward(batch).backward()
                self.compiled = True
            except Exception as error:
                print(f"  compilation failed, going on without: {str(error)[:500]}", flush=True)
                state = self._weights()
                self.model = new_model(self.settings).to(self.device)
                self.model.load_state_dict(state)
                self.loss = token_loss
        if not self.compiled:
            self._forward(batch).backward()
        self.model.zero_grad(set_to_none=True)
        self._synchronize()
        self.compile_seconds = time.monotonic() - start
        print(f"  first step: {self.compile_seconds:.1f} s, compiled: {self.compiled}", flush=True)

    def _forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden = self.model.model(input_ids=inputs.long(), use_cache=False).last_hidden_state
            return self.loss(hidden, self.model.lm_head.weight, targets)

    def _start_decay(self, elapsed: float) -> None:
        self.decay_start, self.decay_end = elapsed, elapsed * (1 + self.settings.decay)

    def _rate(self, elapsed: float) -> float:
        """Learning rate: a linear warm-up, a plateau, a linear decay to zero."""
        warm = min(1.0, (self.steps + 1) / self.settings.warmup_steps)
        left = 1.0
        if elapsed > self.decay_start:
            left = max(0.0, (self.decay_end - elapsed) / (self.decay_end - self.decay_start))
        return self.settings.peak_lr * warm * left

    def _step(self, batch: tuple[Tensor, Tensor], rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._forward(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.detach()

    def _probe(self, loss: float, seconds: float) -> None:
        weights = self._weights()
        self.probe_model.load_state_dict(weights)
        texts = sample(self.probe_model, self.tasks, 0.0, self.settings)
        rate = float(judge(self.tasks, texts).mean())
        self.history.append({"seconds": round(seconds, 1), "step": self.steps, "loss": loss, "greedy": rate})
        print(f"  {seconds:5.0f} s  step {self.steps}  loss {loss:.4f}  greedy {rate:.3f}", flush=True)
        if self.decay_start == math.inf and rate >= self.settings.aim:
            self._start_decay(seconds)
        if rate <= self.settings.ceiling:
            self.kept, self.kept_step, self.kept_greedy = weights, self.steps, rate

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
