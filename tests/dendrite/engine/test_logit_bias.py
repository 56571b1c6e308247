"""Biases that callers put on logits, and the likeliest tokens that they ask to see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dendrite.config import SamplingParams
from dendrite.engine.async_engine import AsyncEngine
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument

PROMPT = list(range(10))


def test_a_bias_of_100_forces_a_token_and_one_of_minus_100_bans_it(engine: Engine) -> None:
    root = engine.prefill(PROMPT)
    forced, banned = root.fork(2)
    engine.decode(forced, max_tokens=5, logit_bias={7: 100.0}, seed=1)
    assert forced.tokens == [7] * 5
    (greedy,) = root.fork()
    engine.decode(greedy, max_tokens=1, temperature=0.0)
    engine.decode(banned, max_tokens=1, temperature=0.0, logit_bias={greedy.tokens[0]: -100.0})
    assert banned.tokens != greedy.tokens


def test_a_bias_leaves_the_reported_logprobs_and_the_rest_of_the_batch_alone(engine: Engine) -> None:
    root = engine.prefill(PROMPT)
    alone, beside, forced = root.fork(3)
    engine.decode(alone, max_tokens=4, seed=5)
    generations = [
        *engine.submit(beside, max_tokens=4, seed=5),
        *engine.submit(forced, max_tokens=4, logit_bias={3: 100.0}),
    ]
    while not all(generation.done for generation in generations):
        engine.step()
    assert beside.tokens == alone.tokens
    assert forced.logprobs == pytest.approx(engine.score(root, [3] * 4), rel=1e-4)


def test_a_biased_token_must_be_in_the_vocabulary(engine: Engine) -> None:
    root = engine.prefill(PROMPT)
    with pytest.raises(InvalidArgument, match="logit_bias"):
        engine.decode(root.fork(), max_tokens=1, logit_bias={1 << 20: 1.0})


async def test_the_likeliest_tokens_are_those_of_the_model(
    engine: Engine, recompute: Callable[[list[int]], torch.Tensor]
) -> None:
    backend = AsyncEngine(engine)
    root = await backend.prefill(PROMPT)
    [branch] = await backend.expand(root, 1, SamplingParams(max_tokens=3, seed=2, top_logprobs=4))
    [plain] = await backend.expand(root, 1, SamplingParams(max_tokens=3, seed=2))
    assert branch.tokens == plain.tokens
    assert plain.top_logprobs == ()
    for place, pairs in enumerate(branch.top_logprobs):
        logprobs = torch.log_softmax(recompute([*PROMPT, *branch.tokens[:place]])[-1], -1)
        values, ids = logprobs.topk(4)
        assert [token for token, _ in pairs] == ids.tolist()
        assert [logprob for _, logprob in pairs] == pytest.approx(values.tolist(), rel=1e-3)
    await backend.aclose()
