"""Ranks as processes: what they compute, and that none outlives its engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.errors import InvalidArgument, RankLost
from dendrite.parallel.local import LocalFollowers
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]
CONFIG = EngineConfig(kv_tokens=2048, device="cpu", tensor_parallel=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ends(pid: int, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_two_processes_generate_what_one_does_until_one_is_killed(folder: Path) -> None:
    followers = LocalFollowers(folder, CONFIG, CPU)
    found = []
    with (
        Engine.from_pretrained(folder, config=CONFIG, followers=followers) as two,
        Engine.from_pretrained(folder, device="cpu", kv_tokens=2048) as one,
    ):
        for engine in (one, two):
            kids = engine.prefill("Numbers: 3 7 8 25. Target").fork(3)
            engine.decode(kids, max_tokens=20, seed=1)
            below = kids[0].at(9).fork(2)
            engine.decode(below, max_tokens=9, temperature=0.0)
            found.append([node.tokens for node in (*kids, *below)])
        assert found[0] == found[1]

        assert all(map(is_alive, followers.pids))
        tokens = two.stream(kids[1].fork(), max_tokens=400, ignore_eos=True)
        next(tokens)
        os.kill(followers.pids[0], signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(RankLost, match="rank 1"):
            list(tokens)
        assert time.monotonic() - began < 3.0
        with pytest.raises(RankLost, match="rank 1"):
            two.prefill("another prompt")
    assert not any(map(is_alive, followers.pids))


def test_closing_the_engine_ends_its_followers(folder: Path) -> None:
    followers = LocalFollowers(folder, CONFIG, CPU)
    with Engine.from_pretrained(folder, config=CONFIG, followers=followers):
        assert all(map(is_alive, followers.pids))
    assert not any(map(is_alive, followers.pids))


def test_a_follower_that_dies_before_it_calls_is_not_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    began = time.monotonic()
    with pytest.raises(RankLost, match="status 1"):
        Engine.from_pretrained(folder, config=CONFIG)
    assert time.monotonic() - began < 10.0


def test_a_size_that_does_not_divide_is_refused_before_a_process_starts(folder: Path) -> None:
    followers = LocalFollowers(folder, CONFIG, CPU)
    with pytest.raises(InvalidArgument, match="tensor_parallel=4: must divide the model's 2 key-value heads"):
        Engine.from_pretrained(folder, device="cpu", tensor_parallel=4, followers=followers)
    assert followers.pids == []


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are two GPUs")
def test_more_ranks_than_gpus_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="CUDA devices"):
        LocalFollowers(folder, CONFIG, torch.device("cuda"))


# Decodes for ever, having said which process its follower is.
_SCRIPT = """
import pathlib, torch
from dendrite.config import EngineConfig
from dendrite.engine.engine import Engine
from dendrite.model.decoder import Decoder
from dendrite.parallel.local import LocalFollowers, form_group

config = EngineConfig(kv_tokens=2048, device="cpu", tensor_parallel=2)
folder, cpu = pathlib.Path({folder!r}), torch.device("cpu")
followers = LocalFollowers(folder, config, cpu)
leader = form_group(folder, config, cpu, followers)
with Engine(Decoder.from_folder(folder, group=leader.group), config=config, leader=leader) as engine:
    root = engine.prefill([1, 2, 3])
    print(followers.pids[0], flush=True)
    while True:
        engine.decode(root.fork(), max_tokens=50)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_followers_end_with_the_leader_however_it_ends(folder: Path, ending: signal.Signals) -> None:
    command = [sys.executable, "-c", _SCRIPT.format(folder=str(folder))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as leader:
        assert leader.stdout is not None
        follower = int(leader.stdout.readline())
        assert is_alive(follower)
        time.sleep(0.1)  # into the decoding
        leader.send_signal(ending)
        assert leader.wait(20.0) != 0
        assert_ends(follower)
