"""A rank above 0: it holds its part of the weights and of the KV, and does what the leader does until that hangs up.

`python -m dendrite.parallel.follower` is one, told its place by a line of JSON on its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from dendrite.config import EngineConfig
from dendrite.engine.capacity import kv_pages
from dendrite.engine.device import check_types, choose_dtype, make_attention
from dendrite.engine.runner import ModelRunner
from dendrite.errors import ClusterError
from dendrite.kv.storage import KvStorage
from dendrite.model.decoder import Decoder
from dendrite.parallel.channel import Channel, Place
from dendrite.parallel.commands import Kind, Numbers, Reply, on_device, pack_reply, unpack, unpack_batch, unpack_copies
from dendrite.parallel.group import Group, join_store
from dendrite.parallel.heads import gather_tokens, scatter_tokens
from dendrite.parallel.sharding import Shard
from dendrite.quant.kv_scales import read_kv_scales

_CALL_TIMEOUT_S = 60.0


def follow(place: Place, folder: str | Path, config: EngineConfig, device: torch.device) -> None:
    """Serve the leader; returns when it hangs up or dies.

    Args:
        place: rank, and where the leader is.
        folder: the model's, the same as the leader's.
        config: the engine's, the same as the leader's.
        device: what this rank computes on; its index, if any, becomes the process's current CUDA device.

    Raises:
        Exception: whatever went wrong, after the leader has been told.
    """
    channel = Channel.to_leader(place, _CALL_TIMEOUT_S)
    try:
        _serve(channel, place, Path(folder), config, device)
    except Exception as error:
        with contextlib.suppress(OSError):  # it was the leader that ended
            channel.send(pack_reply(Reply.FAILED, f"{type(error).__name__}: {error}"))
        raise
    finally:
        channel.close()


def _serve(channel: Channel, place: Place, folder: Path, config: EngineConfig, device: torch.device) -> None:
    if device.index is not None:
        torch.cuda.set_device(device)
    port = _expect(channel, Kind.JOIN)
    if port is None:
        return
    group = Group(Shard(place.rank, place.size), join_store(port), device)
    try:
        _work(channel, group, folder, config, device)
    finally:
        group.abort()


def _work(channel: Channel, group: Group, folder: Path, config: EngineConfig, device: torch.device) -> None:
    decoder = Decoder.from_folder(folder, choose_dtype(config, device), device, config.quantize, group)
    kv_dtype = check_types(config, decoder)
    scales = read_kv_scales(folder, decoder.config, decoder.shard) if config.kv_dtype == "fp8" else None
    channel.send(pack_reply(Reply.READY, kv_pages(config, decoder.config, kv_dtype, decoder.device)))
    pages = _expect(channel, Kind.ALLOCATE)
    if pages is None:
        return
    storage = KvStorage.of(decoder.config, pages, config.page_size, kv_dtype, decoder.device, scales)
    attention = make_attention(config, storage, decoder.config.num_heads, decoder.dtype)
    runner = ModelRunner(decoder, None, storage, attention)
    while (frame := channel.receive()) is not None:
        _carry_out(group, runner, *unpack(frame))


@torch.inference_mode()
def _carry_out(group: Group, runner: ModelRunner, kind: Kind, numbers: Numbers) -> None:
    match kind:
        case Kind.COPY:
            runner.copy_tails(unpack_copies(numbers))
        case Kind.FORWARD:
            runner.run(on_device(unpack_batch(numbers), runner.decoder.device))
        case Kind.READ:
            gather_tokens(group, runner.storage, torch.from_numpy(numbers.copy()))
        case Kind.WRITE:
            scatter_tokens(group, runner.storage, torch.from_numpy(numbers.copy()))
        case _:
            raise ClusterError(f"a follower at work was told to {kind.name}")


def _expect(channel: Channel, wanted: Kind) -> int | None:
    """The number of a command that must be the next; None if the leader hangs up instead."""
    frame = channel.receive()
    if frame is None:
        return None
    kind, numbers = unpack(frame)
    if kind is not wanted:
        raise ClusterError(f"a follower that waits for {wanted.name} was told to {kind.name}")
    return int(numbers[0])


def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's to handle
    told = json.loads(sys.stdin.readline())
    place = Place(told["rank"], told["size"], told["port"], bytes.fromhex(told["key"]))
    torch.set_num_threads(told["threads"])
    try:
        follow(place, told["folder"], EngineConfig(**told["config"]), torch.device(told["device"]))
    except Exception as error:
        print(f"rank {place.rank} of the tensor-parallel group: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = _main()
    sys.stderr.flush()
    os._exit(code)  # what still hangs on the GPU must not hold up the end
