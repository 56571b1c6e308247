"""Self-consistency at scale: hundreds of samples fork one prompt, and the answer that most of them give is taken.

The samples hold the prompt's KV once, not once each: the pages they share are counted at the end. Run it with
`python examples/self_consistency.py [SAMPLES]`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dendrite import Engine
from dendrite.search.tasks.countdown import Countdown

TASK = Countdown((5, 11, 77, 98), target=181)


@dataclass(frozen=True, slots=True)
class Vote:
    """What the samples say, and the KV pages that they hold together and would hold one by one."""

    answers: Counter[str]
    pages: int
    pages_apart: int


def vote(engine: Engine, samples: int) -> Vote:
    """Draw samples and count their answers; one that breaks the rule of the problem has no vote."""
    root = engine.prefill(TASK.prompt)
    branches = root.fork(samples)
    engine.decode(branches, max_tokens=80, temperature=0.8)
    answers = Counter(answer for branch in branches if (answer := TASK.answer(branch.text)) is not None)
    stats = engine.stats()
    apart = sum(-(-branch.length // stats.page_tokens) for branch in branches)  # each with the prompt, rounded up
    root.release(subtree=True)
    return Vote(answers, stats.pages_held, apart)


def most_likely(engine: Engine) -> str | None:
    """The answer of greedy decoding, None where it breaks the rule."""
    root = engine.prefill(TASK.prompt)
    engine.decode(text := root.fork()[0], max_tokens=80, temperature=0.0)
    answer = TASK.answer(text.text)
    root.release(subtree=True)
    return answer


def main(args: Sequence[str] | None = None) -> Vote:
    """Vote, and show the most frequent answers."""
    parser = argparse.ArgumentParser(description="Sample many answers by forking one prompt, and let them vote.")
    parser.add_argument("samples", type=int, nargs="?", default=256, help="how many to draw, default 256")
    samples = parser.parse_args(args).samples
    if not 1 <= samples <= 2_000:
        parser.error("samples must be 1 to 2000")

    with Engine.from_pretrained("countdown", kv_tokens=200_000) as engine:
        print(f"{TASK.name}; by greedy decoding: {most_likely(engine) or 'an error in its arithmetic'}")
        found = vote(engine, samples)
    for answer, votes in found.answers.most_common(5):
        print(f"{votes:5}  {answer}")
    print(f"{found.answers.total()} of {samples} samples follow the rules and have a vote")
    print(f"{found.pages} KV pages held, {found.pages_apart} without sharing")
    return found


if __name__ == "__main__":
    main()
