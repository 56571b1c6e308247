"""A model on two GPUs beside the same model on one, in float32 and in bfloat16."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument, RankLost
from dendrite.model.config import ModelConfig
from dendrite.model.weights import tensor_shapes
from dendrite.parallel.local import LocalFollowers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 CUDA devices"),
    pytest.mark.filterwarnings("ignore:decoding goes token by token"),
]

CUDA = torch.device("cuda")
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_VOCABULARY = 1_000
_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": _VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


@dataclass(frozen=True, slots=True)
class Engines:
    """On one GPU and on two, in one type; what they say may differ by `tolerance`."""

    one: Engine
    two: Engine
    followers: LocalFollowers
    tolerance: float


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with biases, without a tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    noise = torch.Generator().manual_seed(7)
    weights = {
        name: torch.ones(shape) if name.endswith("norm.weight") else torch.randn(shape, generator=noise) * 0.04
        for name, shape in tensor_shapes(ModelConfig.from_folder(folder)).items()
    }
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engines(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engines]:
    single = EngineConfig(device="cuda", kv_tokens=8_192, dtype=request.param, debug_checks=True)
    config = single.model_copy(update={"tensor_parallel": 2})
    followers = LocalFollowers(folder, config, CUDA)
    with (
        Engine.from_pretrained(folder, config=single) as one,
        Engine.from_pretrained(folder, config=config, followers=followers) as two,
    ):
        yield Engines(one, two, followers, TOLERANCE[request.param])
    for process in followers.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(_VOCABULARY), k=length)


def assert_close(found: list[float], expected: list[float], tolerance: float) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("length", [1, 16, 100, 1000])
def test_two_gpus_score_what_one_does(engines: Engines, length: int) -> None:
    """Log-probabilities of 40 given tokens, by a prefill and by its continuation."""
    found = []
    for engine in (engines.one, engines.two):
        root = engine.prefill(prompt(length, seed=length))
        found.append(engine.score(root, prompt(40, seed=1)))
        root.release()
    assert_close(found[1], found[0], engines.tolerance)


def test_two_gpus_choose_the_tokens_that_one_does(engines: Engines) -> None:
    """Greedily, from forks at the end of a path, inside a page and inside another fork."""
    paths = []
    for engine in (engines.one, engines.two):
        root = engine.prefill(prompt(203))
        kids = root.fork(3)
        engine.decode(kids[0], max_tokens=37, temperature=0.0)
        inner = [*kids[0].at(5).fork(2), *root.at(101).fork(2)]
        engine.decode([*kids[1:], *inner], max_tokens=21, temperature=0.0)
        paths.append([*kids, *inner])
    for one, two in zip(*paths, strict=True):
        same = next((at for at, (a, b) in enumerate(zip(one.tokens, two.tokens, strict=True)) if a != b), None)
        if same is None:
            assert_close(two.logprobs, one.logprobs, engines.tolerance)
            continue
        # Another token may be chosen only where the two were too close to call.
        assert engines.tolerance > 1e-3, "float32 must choose the same tokens"
        assert_close(two.logprobs[: same + 1], one.logprobs[: same + 1], 2 * engines.tolerance)
    for nodes in paths:
        for node in nodes:
            node.release()


def test_sampled_tokens_have_the_log_probabilities_that_one_gpu_gives_them(engines: Engines) -> None:
    one, two = engines.one, engines.two
    root, alone = two.prefill(prompt(70)), one.prefill(prompt(70))
    kids = root.fork(16)
    two.decode(kids, max_tokens=30, temperature=1.0, seed=2)
    for kid in kids:
        assert_close(kid.logprobs, one.score(alone, kid.tokens), engines.tolerance)
    assert two.stats().tail_copies >= 15
    root.release(subtree=True)
    alone.release()


def test_kv_moves_between_groups_with_all_heads(engines: Engines) -> None:
    two = engines.two
    root = two.prefill(prompt(45, seed=3))
    expected, part = two.score(root, prompt(9)), two.export_path(root)
    root.release()
    two.cache.clear_cache()
    again = two.import_path(part)
    assert two.score(again, prompt(9)) == pytest.approx(expected, rel=engines.tolerance)
    again.release()


def test_what_is_chosen_is_visible(engines: Engines) -> None:
    one, two = engines.one.stats(), engines.two.stats()
    assert (one.tensor_parallel, two.tensor_parallel) == (1, 2)
    assert (one.device_loop, two.device_loop) == (True, False)
    assert one.page_bytes == two.page_bytes


def test_more_ranks_than_gpus_are_refused(folder: Path) -> None:
    config = EngineConfig(device="cuda", tensor_parallel=64)
    with pytest.raises(InvalidArgument, match="CUDA devices"):
        LocalFollowers(folder, config, CUDA)


def test_a_gpu_that_is_lost_fails_the_engine_soon_and_leaves_no_process(folder: Path) -> None:
    """The last test: it may leave this process's CUDA unusable, as memory of the lost process was mapped here."""
    config = EngineConfig(device="cuda", kv_tokens=8_192, tensor_parallel=2)
    followers = LocalFollowers(folder, config, CUDA)
    with Engine.from_pretrained(folder, config=config, followers=followers) as engine:
        root = engine.prefill(prompt(50))
        tokens = engine.stream(root.fork(8), max_tokens=2_000)
        next(tokens)
        os.kill(followers.pids[0], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RankLost, match="rank 1"):
            list(tokens)
        assert time.monotonic() - began < 10.0
    with pytest.raises(ProcessLookupError):
        os.kill(followers.pids[0], 0)
