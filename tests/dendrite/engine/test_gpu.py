"""The engine on a GPU, through the public API: what it generates is what recomputation on the CPU says.

A small random model in bfloat16, and the packaged one in float32.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import OutOfPages
from dendrite.kv.node import Node
from dendrite.model.config import ModelConfig
from dendrite.model.decoder import Decoder
from dendrite.model.weights import tensor_shapes
from dendrite.search.tasks.countdown import problems
from tests.recompute import logits_by_recomputation

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

DEVICE = "cuda"
TOLERANCE = 2e-2
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    noise = torch.Generator().manual_seed(7)
    weights = {
        name: torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape, generator=noise) * 0.04
        for name, shape in tensor_shapes(ModelConfig.from_folder(folder)).items()
    }
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Decoder:
    return Decoder.from_folder(folder, device=DEVICE)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Decoder:
    """The same weights in float32 on the CPU."""
    return Decoder.from_folder(folder, dtype=torch.float32)


def make_engine(decoder: Decoder, **settings: Any) -> Engine:
    return Engine(decoder, config=EngineConfig(**{"device": DEVICE, "kv_tokens": 16_384, **settings}))


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1000), k=length)


def assert_recomputation_agrees(oracle: Decoder, nodes: Iterable[Node], *, greedy: bool = False) -> None:
    """Stored logprobs are the oracle's; greedy tokens its most likely ones, wherever that is not too close to call."""
    checked = 0
    for node in nodes:
        path = node.path_tokens
        logits = logits_by_recomputation(oracle, path)
        first = node.length - len(node.logprobs)
        fresh = torch.log_softmax(logits[first - 1 : -1], -1)
        tokens = torch.tensor(path[first:])
        expected = fresh.gather(1, tokens.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(node.logprobs), expected, rtol=TOLERANCE, atol=TOLERANCE)
        checked += len(node.logprobs)
        if greedy:
            best = fresh.topk(2).values
            clear = best[:, 0] - best[:, 1] > 2 * TOLERANCE
            assert clear.any()
            assert torch.equal(fresh.argmax(-1)[clear], tokens[clear])
    assert checked


# ---------------------------------------------------------------- fork = recompute


@pytest.mark.parametrize("length", [1, 16, 100, 1000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_fork_equals_its_recomputation(length: int, temperature: float, decoder: Decoder, oracle: Decoder) -> None:
    with make_engine(decoder, debug_checks=True) as engine:
        root = engine.prefill(prompt(length, seed=length))
        kids = root.fork(5)
        engine.decode(kids, max_tokens=37, temperature=temperature, ignore_eos=True)
        inner = [*kids[0].at(1).fork(2), *kids[1].at(20).fork(), *kids[2].fork(3), *root.at(length).fork()]
        engine.decode(inner, max_tokens=21, temperature=temperature, ignore_eos=True)
        (last,) = inner[0].at(10).fork()
        engine.decode(last, max_tokens=9, temperature=temperature, ignore_eos=True)
        assert_recomputation_agrees(oracle, [*kids, *inner, last], greedy=temperature == 0.0)
        root.release(subtree=True)


def test_prompts_of_all_lengths_in_one_batch(decoder: Decoder, oracle: Decoder) -> None:
    with make_engine(decoder, debug_checks=True, max_batch_tokens=256, max_running=64) as engine:
        roots = [engine.submit_prefill(prompt(n, seed=n))[0] for n in (1, 7, 15, 16, 17, 33, 250, 300, 700)]
        kids = [kid for root in roots for kid in root.fork(2)]
        engine.decode(kids, max_tokens=18)
        assert_recomputation_agrees(oracle, kids)


def test_scores_are_the_stored_logprobs(decoder: Decoder) -> None:
    with make_engine(decoder, debug_checks=True) as engine:
        root = engine.prefill(prompt(50))
        (kid,) = root.fork()
        engine.decode(kid, max_tokens=30)
        torch.testing.assert_close(
            torch.tensor(engine.score(root, kid.tokens)), torch.tensor(kid.logprobs), rtol=TOLERANCE, atol=TOLERANCE
        )


# ---------------------------------------------------------------- graphs, bursts, replays


def test_batches_may_shrink_from_one_to_the_next(decoder: Decoder, oracle: Decoder) -> None:
    """The graphs of a smaller batch are recorded after a larger one has run."""
    with make_engine(decoder) as engine:
        root = engine.prefill(prompt(300))
        for count in (200, 40, 5, 2, 1):
            kids = root.fork(count)
            engine.decode(kids, max_tokens=6)
            assert_recomputation_agrees(oracle, kids[-1:])


def trace(engine: Engine, temperature: float) -> list[list[int]]:
    """A small search: what each node of it generated."""
    rng = random.Random(3)
    nodes = [engine.prefill(prompt(100), seed=5)]
    for width in (1, 5, 16, 3):
        kids = [rng.choice(nodes).fork()[0] for _ in range(width)]
        engine.decode(kids, max_tokens=rng.randint(5, 40), temperature=temperature, ignore_eos=True)
        nodes += kids
    tokens = [node.tokens for node in nodes]
    nodes[0].release(subtree=True)
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("settings", [{"cuda_graphs": False}, {"max_burst": 1}])
def test_graphs_and_bursts_change_no_token(decoder: Decoder, temperature: float, settings: dict[str, Any]) -> None:
    with make_engine(decoder) as engine, make_engine(decoder, **settings) as plain:
        assert trace(engine, temperature) == trace(plain, temperature)


def test_a_search_replays(decoder: Decoder) -> None:
    found = []
    for _ in range(2):
        with make_engine(decoder, seed=11) as engine:
            found.append(trace(engine, 1.0))
    assert found[0] == found[1]
    with make_engine(decoder, seed=11) as engine:
        first, second = (engine.prefill(prompt(60), seed=seed).fork(3) for seed in (1, 2))
        engine.decode([*first, *second], max_tokens=20)
        assert len({tuple(kid.tokens) for kid in (*first, *second)}) == 6


# ---------------------------------------------------------------- pages


def test_pages_for_half_of_the_leaves_change_no_token(folder: Path) -> None:
    """In float32: there other rows in a batch change the rounding so little that one token in 100,000 may notice."""
    decoder = Decoder.from_folder(folder, dtype=torch.float32, device=DEVICE)

    def leaves(pages: int) -> tuple[list[list[int]], int]:
        with make_engine(decoder, kv_tokens=16 * pages) as engine:
            branches = engine.prefill(prompt(100)).fork(128)
            engine.decode(branches, max_tokens=64, temperature=1.0, ignore_eos=True)
            return [branch.tokens for branch in branches], engine.stats().preemptions

    enough, none = leaves(1024)
    few, preempted = leaves(320)
    assert none == 0
    assert preempted > 0
    assert sum(one != other for one, other in zip(enough, few, strict=True)) <= 1


def test_poisoned_pages_are_never_read(decoder: Decoder, oracle: Decoder) -> None:
    with make_engine(decoder, debug_checks=True) as engine:
        engine._runner.storage.pages.fill_(float("nan"))
        root = engine.prefill(prompt(333))
        kids = root.fork(9)
        engine.decode(kids, max_tokens=33)
        inner = [fork for kid in kids for fork in kid.at(7).fork(2)]
        engine.decode(inner, max_tokens=17)
        assert all(math.isfinite(logprob) for node in (*kids, *inner) for logprob in node.logprobs)
        assert_recomputation_agrees(oracle, [kids[0], inner[0], inner[-1]])
        assert all(map(math.isfinite, engine.score(inner[3], prompt(40, seed=2))))


def test_forks_hold_no_pages_before_they_write(decoder: Decoder) -> None:
    with make_engine(decoder) as engine:
        root = engine.prefill(prompt(4096))
        before, memory = engine.stats().pages_held, torch.cuda.memory_allocated()
        kids = root.fork(256)
        assert before <= engine.stats().pages_held < 1.01 * before
        assert torch.cuda.memory_allocated() <= memory
        engine.decode(kids, max_tokens=3, ignore_eos=True)
        # The context ends with a page, so each branch has one of its own now.
        assert engine.stats().pages_held == before + 256
        root.release(subtree=True)
        assert engine.stats().pages_held == 0


class Work:
    """Random operations on an engine whose pool is far too small for all of it."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.nodes: list[Node] = []
        self.refused = 0

    def once(self) -> None:
        """One operation; one that finds no page changes nothing."""
        self.nodes = [node for node in self.nodes if not node.released]
        if not self.nodes or (len(self.nodes) < 3 and self.rng.random() < 0.5):
            self.prefill()
            return
        operations = [self.prefill, self.fork, self.fork_inside, self.score, self.release, self.cancel_stream]
        weights = [1, 4, 4, 2, 5 if len(self.nodes) < 40 else 30, 2]
        (operation,) = self.rng.choices([*operations, self.decode], [*weights, 6])
        try:
            operation()
        except OutOfPages:
            self.refused += 1

    def node(self) -> Node:
        return self.rng.choice(self.nodes)

    def prefill(self) -> None:
        shared = list(range(40)) if self.rng.random() < 0.5 else []
        self.nodes.append(self.engine.prefill([*shared, *self.rng.choices(range(1000), k=self.rng.randint(1, 60))]))

    def fork(self) -> None:
        self.nodes += self.node().fork(self.rng.randint(1, 4))

    def fork_inside(self) -> None:
        node = self.node()
        at = self.rng.randint(0, len(node.tokens))
        self.nodes += node.at(at).fork(self.rng.randint(1, 2)) if node.base + at else node.fork()

    def decode(self) -> None:
        """Different lengths and stops in one batch; every node ends as it should."""
        able = [node for node in self.nodes if node.length < 300]
        chosen = self.rng.sample(able, min(len(able), self.rng.randint(1, 16)))
        wanted = [(node, len(node.tokens), self.settings()) for node in chosen]
        generations = [self.engine.submit(node, **settings)[0] for node, _, settings in wanted]
        while not all(generation.done for generation in generations):
            self.engine.step()
        for (node, before, settings), generation in zip(wanted, generations, strict=True):
            if generation.error is not None:
                assert isinstance(generation.error, OutOfPages)
                self.refused += 1
                continue
            made, stops = node.tokens[before:], settings.get("stop_token_ids", ())
            assert not any(token in stops for token in made[:-1])
            if node.finish_reason == "stop":
                assert made[-1] in stops
            else:
                assert len(made) == settings["max_tokens"]
            assert all(map(math.isfinite, node.logprobs))

    def settings(self) -> dict[str, Any]:
        stops = {"stop_token_ids": tuple(self.rng.sample(range(1000), 60))} if self.rng.random() < 0.4 else {}
        return {"max_tokens": self.rng.randint(1, 60), "temperature": self.rng.choice([0.0, 1.0, 1.5]), **stops}

    def score(self) -> None:
        tokens = self.rng.choices(range(1000), k=self.rng.randint(1, 20))
        assert all(map(math.isfinite, self.engine.score(self.node(), tokens)))

    def release(self) -> None:
        self.node().release(subtree=self.rng.random() < 0.3)

    def cancel_stream(self) -> None:
        chosen = self.rng.sample(self.nodes, min(len(self.nodes), 3))
        chosen = [node for node in chosen if node.length < 300]
        if not chosen:
            return
        stream = self.engine.stream(chosen, max_tokens=50)
        try:
            for _ in range(self.rng.randint(1, 20)):
                next(stream)
        finally:
            stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", [{}, {"cuda_graphs": False}])
def test_ten_thousand_random_operations(decoder: Decoder, oracle: Decoder, settings: dict[str, Any]) -> None:
    operations = 10_000 if not settings else 1_000
    engine = make_engine(decoder, kv_tokens=1024, max_batch_tokens=128, max_running=16, **settings)
    work = Work(engine, seed=len(settings))
    for operation in range(operations):
        work.once()
        if operation % 50 == 0:
            engine.check()
        if operation % 500 == 250:
            live = [node for node in work.nodes if not node.released and node.logprobs]
            assert_recomputation_agrees(oracle, work.rng.sample(live, min(len(live), 3)) or [some_node(engine)])
    for node in work.nodes:
        node.release()
    stats = engine.stats()
    assert stats.pages_held == 0
    assert stats.pages_free + stats.pages_cached == stats.pages_total
    if operations == 10_000:  # enough to have come by everything
        assert min(stats.preemptions, stats.tail_copies, stats.takeovers, stats.cached_tokens) > 0
    engine.check()
    engine.close()
    stats = engine.stats()
    assert (stats.pages_cached, stats.pages_free) == (0, stats.pages_total)
    assert engine._runner.tips.used == 0


def some_node(engine: Engine) -> Node:
    (kid,) = engine.prefill(prompt(5)).fork()
    engine.decode(kid, max_tokens=3)
    return kid


# ---------------------------------------------------------------- how generations end


def test_a_stream_s_first_token_comes_alone(decoder: Decoder) -> None:
    with make_engine(decoder) as engine:
        (kid,) = engine.prefill(prompt(30)).fork()
        stream = engine.stream(kid, max_tokens=20)
        next(stream)
        assert len(kid.tokens) == 1
        assert len(list(stream)) == 19


def test_a_stop_id_ends_a_generation_within_a_burst(decoder: Decoder, oracle: Decoder) -> None:
    with make_engine(decoder, debug_checks=True) as engine:
        root = engine.prefill(prompt(90))
        full, cut = root.fork(2)
        engine.decode(full, max_tokens=40, temperature=0.0)
        stop = next(at for at in range(5, 40) if full.tokens[at] not in full.tokens[:at])
        engine.decode(cut, max_tokens=40, temperature=0.0, stop_token_ids=(full.tokens[stop],))
        assert cut.tokens == full.tokens[: stop + 1]
        assert (cut.finish_reason, full.finish_reason) == ("stop", "length")
        kids = [*cut.fork(2), *cut.at(2).fork()]
        engine.decode(kids, max_tokens=11)
        engine.decode(cut, max_tokens=5)
        assert_recomputation_agrees(oracle, [cut, *kids])


def test_generations_of_different_lengths_run_together(decoder: Decoder, oracle: Decoder) -> None:
    with make_engine(decoder, debug_checks=True) as engine:
        root = engine.prefill(prompt(70))
        lengths = [1, 2, 3, 15, 16, 17, 31, 32, 33, 50]
        kids = root.fork(len(lengths))
        for kid, length in zip(kids, lengths, strict=True):
            engine.submit(kid, max_tokens=length)
        while engine.has_work:
            engine.step()
        assert [len(kid.tokens) for kid in kids] == lengths
        assert_recomputation_agrees(oracle, kids)


def test_a_stream_gives_tokens_in_order_and_stops_when_closed(decoder: Decoder, oracle: Decoder) -> None:
    with make_engine(decoder, debug_checks=True) as engine:
        root = engine.prefill(prompt(70))
        whole, closed = root.fork(2)
        streamed = [event.token for event in engine.stream(whole, max_tokens=45)]
        assert streamed == whole.tokens
        assert len(streamed) == 45
        stream = engine.stream(closed, max_tokens=200)
        first = [next(stream).token for _ in range(3)]
        stream.close()  # type: ignore[attr-defined]
        assert closed.tokens[:3] == first
        assert len(closed.tokens) < 200
        assert not engine.has_work
        assert_recomputation_agrees(oracle, [whole, closed])


@pytest.fixture(scope="module")
def countdown() -> Iterator[tuple[Engine, Engine]]:
    """The packaged model in float32, on the CPU and on the GPU."""
    with (
        Engine.from_pretrained("countdown", device="cpu", dtype="float32", kv_tokens=8192) as cpu,
        Engine.from_pretrained("countdown", device=DEVICE, dtype="float32", kv_tokens=8192) as gpu,
    ):
        yield cpu, gpu


@pytest.mark.parametrize("settings", [{}, {"stop": "\n"}, {"stop": ("= 9", "+"), "max_tokens": 50}])
def test_greedy_texts_are_those_of_the_cpu(countdown: tuple[Engine, Engine], settings: dict[str, Any]) -> None:
    found = []
    for engine in countdown:
        kids = [engine.prefill(task.prompt).fork()[0] for task in problems(8, seed=4)]
        engine.decode(kids, **{"max_tokens": 70, "temperature": 0.0, **settings})
        found.append([(kid.text, kid.finish_reason) for kid in kids])
        for kid in kids:
            assert kid.logprobs
            assert kid.value is not None
    assert found[0] == found[1]
    assert any(reason == "stop" for _, reason in found[0])


def test_values_and_logprobs_are_those_of_the_cpu(countdown: tuple[Engine, Engine]) -> None:
    rows = []
    for engine in countdown:
        root = engine.prefill(problems(1, seed=9)[0].prompt)
        kids = root.fork(4)
        engine.decode(kids, max_tokens=24, temperature=0.0, ignore_eos=True)
        rows.append(torch.tensor([[*kid.logprobs, kid.value or 0.0] for kid in kids]))
        root.release(subtree=True)
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-3, atol=1e-4)
