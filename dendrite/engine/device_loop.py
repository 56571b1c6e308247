"""Decoding on the GPU: several steps back to back, while the host waits only for tokens.

    host     fill, launch ────────┐ wait ▒▒ accept tokens, schedule, fill, launch ...
    device   S F S F S F S ─ copy ─ F ──────┐ S F S F ...
                             tokens ▲       └ hidden states to the tips

S samples a token of every row from its hidden state, F runs those tokens through the model. The tokens of a burst are
known before its last F ends, so the host's work on them hides behind it. Rows, page tables and settings live on the
device and advance there; a row whose token is one of its stop ids goes quiet by itself.

Where a row has a grammar the host sees the tokens of every S, and its masks for the next one are ready, as a rule,
before F ends (`dendrite.grammar.walk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from dendrite.attention.tree import TreeAttention
from dendrite.attention.tree_plan import TreePlan
from dendrite.config import EngineConfig
from dendrite.engine.burst import Burst, SampleKind
from dendrite.engine.clock import StepClock
from dendrite.engine.constraints import Constraints
from dendrite.engine.device_masks import DeviceMasks
from dendrite.engine.device_rows import DeviceRows
from dendrite.engine.generation import Generation
from dendrite.engine.graphs import GraphPool
from dendrite.engine.tips import TipStore
from dendrite.kernels import elementwise, sampling
from dendrite.kv.cache import KvCache
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder
from dendrite.model.fused import FusedDecoder, RowInputs
from dendrite.transfer import Mirror, send

_HORIZON = 64
"""Tokens that a work list of attention stays good for."""


class DeviceLoop:
    """Runs bursts of decode steps of one engine."""

    def __init__(
        self,
        decoder: Decoder,
        storage: KvStorage,
        tips: TipStore,
        cache: KvCache,
        config: EngineConfig,
        longest_context: int,
    ) -> None:
        device, shape = decoder.device, decoder.config
        on_cuda = device.type == "cuda"
        rows, steps = config.max_running, config.max_burst
        pdl = on_cuda and torch.cuda.get_device_capability(device) >= (9, 0)
        table = rows * (-(-longest_context // config.page_size) + 1)
        # Triton's interpreter, off CUDA, runs the programs of a launch one after the other.
        processors = torch.cuda.get_device_properties(device).multi_processor_count if on_cuda else 1
        self.attention = TreeAttention(
            storage.pages, shape.num_heads, rows, table, sm_count=processors, pdl=pdl, kv_scales=storage.scales
        )
        self._model = FusedDecoder(decoder, storage, self.attention, rows, pdl=pdl)
        self._decoder, self._cache, self._tips, self._pdl = decoder, cache, tips, pdl
        self._graphs = GraphPool(config.cuda_graphs and on_cuda)
        self._sizes = batch_sizes(rows)
        self._rows = DeviceRows(rows, shape.vocab_size, device)
        self._tokens = torch.zeros(rows, dtype=torch.int32, device=device)
        self._stopping = torch.zeros(rows, dtype=torch.int32, device=device)
        self._states = torch.zeros(rows, shape.hidden_size, dtype=decoder.dtype, device=device)
        self._history = torch.zeros(steps, rows, shape.hidden_size, dtype=decoder.dtype, device=device)
        self._drawn = Mirror(
            {
                "tokens": ((steps, rows), torch.int32),
                "logprobs": ((steps, rows), torch.float32),
                "log_mass": ((rows,), torch.float32),
            },
            device,
        )
        self._workspace = sampling.sampling_workspace(rows, shape.vocab_size, device)
        self._masks = DeviceMasks(rows, shape.vocab_size, device, pdl=pdl)
        self._ready = torch.cuda.Event() if on_cuda else None
        self._walked = torch.cuda.Event(external=True) if on_cuda else None  # recorded within a graph
        self._copying = torch.cuda.Stream(device) if on_cuda else None
        self._filled_for = -1  # version of the batch that the rows on the device are
        self._kind = SampleKind()
        self._plan: TreePlan | None = None
        self._planned_for = (-1, 0)  # version of the batch, and its padded size
        self._left = 0  # steps that the plan is still good for
        self.clock = StepClock()

    def run(self, generations: Sequence[Generation], steps: int, version: int, constraints: Constraints) -> Burst:
        """Generate `steps` tokens on each node, for which slots are reserved and own tips allocated.

        Args:
            generations: the rows; each starts from the tip it names and leaves its last hidden state in its node's.
            steps: at most `config.max_burst`; fewer are made where `Walk.step` finds nothing to go on for.
            version: changes whenever the list of generations does.
            constraints: of the engine, for rows that have a grammar; their masks must be there.

        If it raises (Ctrl-C while it waits, say), the nodes' tips and the generations' matchers are undefined, and no
        token has been generated.
        """
        count = len(generations)
        size = next(size for size in self._sizes if size >= count)
        if self._filled_for == version:  # the rows are where the last burst has left them
            self._rows.device["step"].zero_()
        else:
            self._kind = SampleKind.of(generations)
            self._record(size, self._kind)
            self._rows.fill(generations, size)
            torch.index_select(self._tips.states, 0, self._rows.device["from"][:count], out=self._states[:count])
        self._filled_for = -1
        try:
            self._place(generations, size, steps, version)
            if self._kind.masked:
                burst = self._walk(size, steps, constraints, generations)
            else:
                self._launch(count, size, self._kind, steps)
                self.clock.enter("wait")
                burst = self._await(count, steps)
        except BaseException:
            if self._ready is not None:  # what is queued still reads the memory that the next burst fills
                torch.cuda.synchronize()
            raise
        self._filled_for = version
        return burst

    def rewind(self, ends: Sequence[tuple[int, Generation, int]]) -> None:
        """Give rows (row, generation, tokens accepted) of the last burst the hidden state of their last token."""
        if not ends:
            return
        if not all(generation.done for _, generation, _ in ends):  # the device is ahead of a row that goes on
            self._filled_for, self._plan = -1, None
        places = [(accepted - 1, row, generation.node.tip) for row, generation, accepted in ends]
        index = send([number for place in places for number in place], self._history.device)
        steps, rows, slots = index.view(-1, 3).unbind(1)
        self._tips.states.index_copy_(0, slots, self._history[steps, rows])

    def savings(self) -> dict[str, int]:
        """How attention has run: the fields of `EngineStats` that only a device loop can fill."""
        seen = self.attention.counters
        return {
            "tree_bursts": seen.tree_batches,
            "flat_bursts": seen.flat_batches,
            "kv_bytes_saved": self.attention.kv_bytes_saved,
        }

    # ---------------------------------------------------------------- inputs

    def _place(self, generations: Sequence[Generation], size: int, steps: int, version: int) -> None:
        """Tell attention where the rows' KV lies."""
        nodes = [generation.node for generation in generations]
        tables = [self._cache.page_table(node) for node in nodes]
        if self._plan is not None and self._planned_for == (version, size) and self._left >= steps:
            self._plan = self.attention.upload_tables(self._plan, tables)
        else:
            lengths = [node.length + 1 for node in nodes]
            self._plan = self.attention.plan(tables, lengths, _HORIZON, rows=size)
            self._planned_for, self._left = (version, size), _HORIZON
        self._left -= steps
        self.attention.apart = self.attention.reads_apart(self._plan, size)
        self.attention.count(self._plan, steps)

    # ---------------------------------------------------------------- the device's work

    def _launch(self, count: int, size: int, kind: SampleKind, steps: int) -> None:
        """Queue a whole burst, with an event behind its last sampling."""
        rows, graphs, apart = self._rows.device, self._graphs, self.attention.apart
        sample, forward = partial(self._sample, size, kind), partial(self._forward, size)
        graphs.run(("sample", size, kind), sample)
        for _ in range(steps - 1):
            graphs.run(("both", size, kind, apart), partial(_in_turn, forward, sample))
        self._drawn.download()
        if self._ready is not None:
            self._ready.record()
        graphs.run(("forward", size, apart), forward)
        self._tips.states.index_copy_(0, rows["to"][:count], self._states[:count])

    def _walk(self, size: int, steps: int, constraints: Constraints, generations: Sequence[Generation]) -> Burst:
        """Run a burst whose every sampling waits for masks, which the host makes of the tokens before."""
        count, graphs, drawn = len(generations), self._graphs, self._drawn.host
        walk = constraints.walk(generations, self._masks.host)
        log_mass: list[npt.NDArray[np.float32]] = []
        for step in range(steps):
            self.clock.enter("launch")
            self._masks.upload(count)
            graphs.run(("walk", size, self._kind, self.attention.apart), partial(self._step, size, self._kind))
            self.clock.enter("wait")
            if self._walked is not None:
                self._walked.synchronize()
            self.clock.enter("sample")  # what of it the host does: masks for the next token
            log_mass.append(drawn["log_mass"][:count].copy())
            if not walk.step(drawn["tokens"][step, :count].tolist()):
                break
        self._tips.states.index_copy_(0, self._rows.device["to"][:count], self._states[:count])
        walk.finish()
        made = len(log_mass)
        raw = drawn["logprobs"][:made, :count] + np.stack(log_mass)
        return replace(self._drawn_in(count, made), raw=raw.T.tolist(), walk=walk)

    def _await(self, count: int, steps: int) -> Burst:
        if self._ready is not None:
            self._ready.synchronize()
        return self._drawn_in(count, steps)

    def _drawn_in(self, count: int, steps: int) -> Burst:
        drawn = self._drawn.host
        return Burst(drawn["tokens"][:steps, :count].T.tolist(), drawn["logprobs"][:steps, :count].T.tolist())

    def _sample(self, size: int, kind: SampleKind) -> None:
        """Draw each row's next token from its hidden state."""
        rows = self._rows.device
        logits = self._model.run_head(self._states[:size])
        masks = None
        if kind.masked:
            masks = self._masks.token_masks(rows["constrained"][:size], self._drawn.device["log_mass"][:size])
        temperature, kept = rows["temperature"][:size], logits
        if kind.filtered:
            if masks is not None:  # filters choose among what may come
                self._masks.apply(logits, masks)
                masks = None
            kept, temperature = self._rows.filtered(logits)
        sampling.sample(
            logits,
            kept,
            temperature,
            rows["seeds"][:size],
            rows["branches"][:size],
            rows["positions"][:size],
            rows["stop_ids"][:size],
            rows["alive"][:size],
            rows["step"],
            self._workspace,
            self._tokens[:size],
            self._stopping[:size],
            self._drawn.device["tokens"],
            self._drawn.device["logprobs"],
            masks=masks,
            pdl=self._pdl,
        )

    def _step(self, size: int, kind: SampleKind) -> None:
        """Sample and go on at once, while the tokens are on their way to the host, with an event behind them."""
        self._sample(size, kind)
        if self._walked is None or self._copying is None:
            self._drawn.download()
            self._forward(size)
            return
        self._copying.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copying):
            self._drawn.download()
            self._walked.record()
        self._forward(size)
        torch.cuda.current_stream().wait_stream(self._copying)

    def _forward(self, size: int) -> None:
        """Run each row's token through the model, keep its hidden state, and step on."""
        rows = self._rows.device
        alive, positions = rows["alive"][:size], rows["positions"][:size]
        hidden = self._model.run_layers(RowInputs(self._tokens, rows["positions"], rows["alive"]), size)
        weights, eps = self._decoder.weights, self._decoder.config.rms_norm_eps
        elementwise.final_norm(
            hidden, weights.norm, eps, alive, rows["step"], self._states[:size], self._history, pdl=self._pdl
        )
        sampling.advance(alive, self._stopping[:size], positions, rows["step"], pdl=self._pdl)

    def _record(self, size: int, kind: SampleKind) -> None:
        """Record the graphs of a batch size when it first occurs, on rows that leave no trace."""
        sample, forward = partial(self._sample, size, kind), partial(self._forward, size)
        if ("walk" if kind.masked else "both", size, kind, False) in self._graphs:
            return
        self._rows.silence()
        self.attention.clear()  # a work list is good for launches of the size that it was planned for
        self._plan = None
        for apart in self.attention.ways(size):
            self.attention.apart = apart
            for work in (sample, forward):  # compiles and loads what recording may not
                work()
            if kind.masked:
                self._graphs.record(("walk", size, kind, apart), partial(self._step, size, kind))
                continue
            self._graphs.record(("both", size, kind, apart), partial(_in_turn, forward, sample))
            if ("forward", size, apart) not in self._graphs:
                self._graphs.record(("forward", size, apart), forward)
        if not kind.masked:
            self._graphs.record(("sample", size, kind), sample)


def batch_sizes(most: int) -> tuple[int, ...]:
    """Row counts that batches are padded to, up to `most`: dense where padding would cost, sparse above."""
    sizes = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 112, 128, *range(160, most + 32, 32)]
    return (*(size for size in sizes if size < most), most)


def _in_turn(*work: partial[None]) -> None:
    for each in work:
        each()
