"""The model card and `training.json`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from countdown_recipe.data import CONTEXT, END, PAD, VOCABULARY
from dendrite.search.tasks import countdown

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [countdown, dendrite, byte-level, value-head]
---

# Countdown, {parameters:.1f} M parameters

A small Llama that plays Countdown: reach a target from three or four numbers with + - * /, using each number once.
It is packaged with Dendrite for examples, tests and measurements of search, and is good for nothing else.

    Numbers: 3 7 8 25. Target: 92.
    7-3=4 (4 8 25)
    …

One equation a line, then the numbers left in brackets; the format and the rule are those of
`dendrite/search/tasks/countdown.py`. A token is a byte (ids 0–255), {end} ends the sequence, {pad} pads.
`value_head.safetensors` estimates, from the final hidden state at the end of the prompt or of a line, the probability
that this model, sampling at temperature 1, goes on to solve the problem: `sigmoid(out(silu(dense(hidden))))`.

## How it was made

`examples/train_countdown.py --out DIR`, on {date}, on one {device}, with torch {torch}, seed {seed}.

- Shape: hidden {hidden}, {layers} layers, {heads} query heads and {kv_heads} key-value heads of 64, ffn {ffn}, tied
  embeddings, {vocabulary} tokens, bfloat16 weights (float32 master weights in training).
- Data: {examples:.2f} M random derivations ({tokens:.0f} M tokens, padding left out), made as training went; numbers
  1–{max_number}, targets {low}–{high}, four numbers in {four:.0%} of problems. {held_out} % of all problems are kept
  out by a hash of numbers and target.
- Training: {trained:.1f} minutes, {steps} steps of {batch} derivations, AdamW, learning rate {peak_lr} until {aim:.0%}
  of validation problems were solved greedily, then a linear decay to zero; the loss is on the derivation only. No
  search and no reinforcement learning.
- Kept: the weights of step {kept_step}, the last whose greedy solve rate on {probe_problems} validation problems was
  at most {ceiling:.0%} (it was {kept_greedy:.1%}), so that search has something left to do.
- Value head: {value}

## What it can do

On {test_problems} held-out problems (`problems({test_problems}, {seed}, "test")`), all of which have a solution:

| | problems | greedy | one sample | 16 samples, any |
|---|---|---|---|---|
{table}

Weights as saved, computed in float32, temperature 1 for samples. Value head, on the prefixes of the held-out samples:

| lines still to be written | prefixes | AUC | Brier score | of the mean | calibration error |
|---|---|---|---|---|---|
{value_table}

## Limits

It has seen nothing but this format, sequences of up to {context} tokens, and numbers and targets in these ranges.
`training.json` has every figure.
"""


def write_card(out: Path, report: dict[str, Any]) -> None:
    settings, training = report["settings"], report["training"]
    low, high = countdown.TARGETS
    rows = [
        f"| {name.replace('_', ' ')} | {r['problems']} | {r['greedy_pass_at_1']:.1%} | {r['sampled_pass_at_1']:.1%} "
        f"| {r.get('sampled_pass_at_16', math.nan):.1%} |"
        for name, r in report.get("solve_rates", {}).items()
        if isinstance(r, dict)
    ]
    value = report.get("value_head")
    value_rows = [
        f"| {name.split('_')[0]} | {r['n']} | {r['auc'] or math.nan:.3f} | {r['brier']:.3f} "
        f"| {r['brier_of_mean']:.3f} | {r['calibration_error']:.3f} |"
        for name, r in (value["held_out"].items() if value else ())
    ]
    made = "not trained yet."
    if value:
        made = (
            f"{value['prefixes']:,} prefixes of {value['rollouts']:,} derivations that the model sampled for "
            f"{value['problems']:,} training problems, labelled by the rule ({value['solved']:.1%} solved)."
        )
    card = CARD.format(
        **settings,
        **{k: report[k] for k in ("date", "device", "torch", "parameters")},
        end=END,
        pad=PAD,
        vocabulary=VOCABULARY,
        examples=training["examples"] / 1e6,
        tokens=training["tokens"] / 1e6,
        max_number=countdown.MAX_NUMBER,
        low=low,
        high=high,
        four=countdown.FOUR_NUMBERS,
        held_out=countdown.TEST_PERCENT + countdown.VALIDATION_PERCENT,
        trained=training["seconds"] / 60,
        steps=training["steps"],
        kept_step=training["kept_step"],
        kept_greedy=training["kept_greedy_on_validation"],
        value=made,
        table="\n".join(rows),
        value_table="\n".join(value_rows),
        context=CONTEXT + 1,
    )
    (out / "README.md").write_text(card)
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
