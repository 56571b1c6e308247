"""A plan's rows through the model, and what is kept of them: KV, hidden states, scores."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dendrite.engine.batch import BatchBuilder
from dendrite.engine.clock import StepClock
from dendrite.engine.plan import Plan, chunk_rows, last_rows
from dendrite.engine.runner import ModelRunner
from dendrite.engine.sampler import logprobs_of
from dendrite.kv.cache import KvCache
from dendrite.kv.node import Node


class Forward:
    """Runs the model for one engine, and leaves each node that ends with its tokens their last hidden state, a tip."""

    def __init__(self, cache: KvCache, runner: ModelRunner, page_size: int) -> None:
        self._cache, self._runner = cache, runner
        self._builder = BatchBuilder(cache, page_size, runner.decoder.config.kv_size, runner.batch_device)

    def run(self, plan: Plan, tokens: list[int], clock: StepClock) -> None:
        """Run a plan's rows, where `tokens` are those just appended to its decoding nodes.

        If it raises, its jobs are where they were; the decoding nodes' tips are undefined.
        """
        if plan.empty:
            return
        clock.enter("launch")
        batch = self._builder.build(plan, tokens)
        clock.enter("model")
        hidden = self._runner.run(batch)
        clock.enter("post")
        scores = self._scores(plan, hidden)  # what may fail comes before anything is noted
        self._store_tips(plan, hidden)
        for chunk, logprobs in zip(plan.chunks, scores, strict=True):
            self._cache.commit(chunk.job.node, chunk.count)
            chunk.job.logprobs += logprobs

    def own_tip(self, node: Node) -> int:
        """The slot of the node's own tip, taken now where it has none."""
        if node.tip < 0:
            node.tip = self._runner.tips.allocate()
        return node.tip

    def forget_tips(self, nodes: Iterable[Node]) -> None:
        """Let nodes have no tip: it is computed again when it is needed."""
        for node in nodes:
            if node.tip >= 0:
                self._runner.tips.release(node.tip)
                node.tip = -1

    def _scores(self, plan: Plan, hidden: Tensor) -> list[list[float]]:
        """For each chunk, the log-probabilities that its job wants of it."""
        scores: list[list[float]] = []
        for chunk in plan.chunks:
            wanted = chunk.job.collect[chunk.start : chunk.start + chunk.count]
            if not wanted:
                scores.append([])
                continue
            first = chunk_rows(plan, chunk).start
            logits = self._runner.decoder.logits(hidden[first : first + len(wanted)])
            scores.append(logprobs_of(logits, torch.tensor(wanted, device=logits.device)).tolist())
        return scores

    def _store_tips(self, plan: Plan, hidden: Tensor) -> None:
        """Keep the last hidden state of every sequence that has come to the end of its tokens."""
        slots: list[int] = []
        rows: list[int] = []
        ends = last_rows(plan)
        for row, generation in enumerate(plan.decodes):
            generation.tip = self.own_tip(generation.node)
            slots.append(generation.tip)
            rows.append(row)
        for row, retip in enumerate(plan.retips, start=len(plan.decodes)):
            at_end = retip.node.length == retip.length
            for generation in retip.waiting:
                generation.tip = self.own_tip(retip.node if at_end else generation.node)
                slots.append(generation.tip)
                rows.append(row)
        for at, chunk in enumerate(plan.chunks, start=len(plan.decodes) + len(plan.retips)):
            if chunk.last:
                slots.append(self.own_tip(chunk.job.node))
                rows.append(ends[at])
        if slots:
            self._runner.tips.write(slots, hidden if rows == list(range(len(hidden))) else hidden[rows])
