"""Losses and divergences against their definition on whole logits."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.errors import ContextOverflow, InvalidArgument
from dendrite.evaluation.perplexity import Scorer, evaluate
from dendrite.evaluation.windows import Window
from dendrite.model.decoder import Decoder
from dendrite.quant.formats import E4M3
from tests.recompute import logits_by_recomputation
from tests.tiny_config import TINY

CONFIG = EngineConfig(device="cpu")


def draw(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(TINY.vocab_size), k=count))


WINDOWS = [Window(draw(length, length), first) for length, first in ((2, 1), (40, 20), (33, 1), (17, 16), (300, 5))]


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
def test_loss_and_divergence_are_those_of_the_logits(kv_dtype: str) -> None:
    config = CONFIG.model_copy(update={"kv_dtype": kv_dtype})
    decoder, other = Decoder.random(TINY, seed=1), Decoder.random(TINY, seed=2)
    found = evaluate(Scorer(decoder, config), WINDOWS, Scorer(other, CONFIG))
    memory = E4M3 if kv_dtype == "fp8" else torch.float32
    losses, divergences, agreed = [], [], []
    for window in WINDOWS:
        tokens = list(window.tokens)
        mine = logits_by_recomputation(decoder, tokens[:-1], memory).log_softmax(-1)[window.first - 1 :]
        theirs = logits_by_recomputation(other, tokens[:-1]).log_softmax(-1)[window.first - 1 :]
        losses.append(-mine[torch.arange(len(mine)), torch.tensor(tokens[window.first :])])
        divergences.append((theirs.exp() * (theirs - mine)).sum(-1))
        agreed.append((theirs.argmax(-1) == mine.argmax(-1)).float())
    assert found.tokens == sum(map(len, losses))
    assert found.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    assert found.kl == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-3)
    assert found.agreement == pytest.approx(torch.cat(agreed).mean().item(), abs=0.01)
    assert found.perplexity == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)


def test_without_another_there_is_no_divergence() -> None:
    found = evaluate(Scorer(Decoder.random(TINY), CONFIG), WINDOWS)
    assert (found.kl, found.agreement) == (None, None)


def test_a_step_holds_many_windows_and_one_that_is_longer() -> None:
    shape = replace(TINY, max_context=4096)
    decoder = Decoder.random(shape, seed=1)
    windows = [*(Window(draw(90, at), 1) for at in range(60)), Window(draw(3000, 9), 1), Window(draw(90, 70), 1)]
    scorer = Scorer(decoder, CONFIG, longest=3000)
    whole = evaluate(scorer, windows)
    parts = [evaluate(scorer, [window]) for window in windows]
    assert whole.tokens == sum(part.tokens for part in parts)
    mean = sum(part.loss * part.tokens for part in parts) / whole.tokens
    assert whole.loss == pytest.approx(mean, rel=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    decoder = Decoder.random(TINY)
    with pytest.raises(ContextOverflow):
        Scorer(decoder, CONFIG, longest=TINY.max_context + 2)
    scorer = Scorer(decoder, CONFIG, longest=50)
    with pytest.raises(ContextOverflow):
        evaluate(scorer, [Window(draw(51, 0), 1)])
    with pytest.raises(InvalidArgument, match="tokens"):
        evaluate(scorer, [Window((1, TINY.vocab_size), 1)])
    with pytest.raises(InvalidArgument, match="windows"):
        evaluate(scorer, [])
    other = Scorer(Decoder.random(replace(TINY, vocab_size=98)), CONFIG)
    with pytest.raises(InvalidArgument, match="against"):
        evaluate(scorer, [Window((1, 2), 1)], other)
