"""Children that the task lists, instead of ones that the model writes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from dendrite.config import SamplingParams
from dendrite.errors import InvalidArgument
from dendrite.search.backend import Backend, Branch, NodeRef
from dendrite.search.task import Split


async def append_actions(
    backend: Backend, node: NodeRef, actions: Sequence[str], n: int, params: SamplingParams, split: Split
) -> list[Branch]:
    """Write up to `n` different ones of `actions` below `node`, drawn by the model's probabilities of them.

    Draws are without replacement, by the Gumbel-top-k trick (Kool et al., 2019, arXiv 1903.06059), at the temperature
    of `params`; at 0 the most likely come. Actions that `params.without` names are left out, as are ones longer than
    `params.max_tokens`, which is what the budget has left; where that leaves none, they are cut there, as a thought
    that the model writes is ("length"). All that can be drawn are computed; those not drawn are released, so that for a
    moment the tree owns more KV than was granted.

    Raises:
        InvalidArgument: an action is empty, or longer than a thought may be.
    """
    known = {each.tokens for each in params.without}
    limit = f"must have 1 to {split.max_tokens} tokens (split.max_tokens)"
    if "" in actions:
        raise InvalidArgument("actions", "", limit)
    given = await asyncio.gather(*(backend.tokenize(action, special=False) for action in actions))
    for action, tokens in zip(actions, given, strict=True):
        if not 1 <= len(tokens) <= split.max_tokens:
            raise InvalidArgument("actions", action, limit)
    left = [tokens for tokens in dict.fromkeys(given) if tokens not in known]
    if not left:
        return []
    branches = await _append_fitting(backend, node, left, params.max_tokens)
    drawn = _draw(branches, n, params)
    try:
        await asyncio.gather(*(backend.release(each.node) for at, each in enumerate(branches) if at not in drawn))
    except BaseException:  # nobody will learn of those that were drawn
        await asyncio.gather(*(backend.release(each.node) for each in branches))
        raise
    return [branches[at] for at in drawn]


async def _append_fitting(
    backend: Backend, node: NodeRef, actions: Sequence[tuple[int, ...]], room: int
) -> list[Branch]:
    """Write the actions that have `room` tokens at most; all of them, cut, if there is none."""
    fitting = [tokens for tokens in actions if len(tokens) <= room]
    if fitting:
        return await backend.append(node, fitting)
    cut = await backend.append(node, list(dict.fromkeys(tokens[:room] for tokens in actions)))
    return [replace(branch, finish_reason="length") for branch in cut]


def _draw(branches: Sequence[Branch], n: int, params: SamplingParams) -> list[int]:
    """Indices of the `n` branches that were drawn, in the order drawn."""
    noise = Random(params.seed)

    def key(branch: Branch) -> float:
        uniform = noise.random() or math.ulp(0.0)
        if params.temperature == 0.0:
            return math.fsum(branch.logprobs)
        return math.fsum(branch.logprobs) / params.temperature - math.log(-math.log(uniform))

    keys = [key(branch) for branch in branches]
    return sorted(range(len(branches)), key=lambda at: -keys[at])[:n]
