"""KV taken out of one engine and put into another: it must be what recomputation gives, and leave nothing behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dendrite.engine.engine import Engine
from dendrite.errors import (
    ContextOverflow,
    InvalidArgument,
    KvFormatMismatch,
    KvNotComputed,
    NodeReleased,
    OutOfPages,
)
from dendrite.kv.node import Node
from dendrite.kv.path_kv import PathKv
from dendrite.model.decoder import Decoder
from tests.tiny_config import TINY

PROMPT = list(range(1, 38))
GREEDY = {"max_tokens": 12, "temperature": 0.0}
Make = Callable[..., Engine]


def frozen(part: PathKv) -> PathKv:
    """As another process sees it: memory that cannot be written."""
    copies = {name: getattr(part, name).copy() for name in ("tokens", "logprobs", "kv")}
    for array in copies.values():
        array.setflags(write=False)
    return dataclasses.replace(part, **copies)


def logits(engine: Engine, node: Node) -> torch.Tensor:
    """[V] of the token after a node."""
    probe = engine.submit_probe(node)
    engine._run_until(probe)
    return engine._runner.logits_at([probe.tip])[0]


def assert_like_recomputed(engine: Engine, node: Node, recompute: Callable[[list[int]], torch.Tensor]) -> None:
    """The node's own logits, and those of tokens below it, which read all of its KV."""
    assert torch.allclose(logits(engine, node), recompute(node.path_tokens)[-1], atol=1e-5)
    child = node.fork()[0]
    engine.decode(child, **GREEDY)
    fresh = torch.log_softmax(recompute(child.path_tokens), -1)
    for at, logprob in enumerate(child.logprobs, start=child.base):
        assert fresh[at - 1, child.path_tokens[at]].item() == pytest.approx(logprob, abs=1e-5)
    child.release()


def test_an_imported_root_continues_as_a_prefilled_one(make_engine: Make, recompute: Any) -> None:
    here, there = make_engine(), make_engine(page_size=8)
    part = frozen(here.export_path(here.prefill(PROMPT)))
    assert part.kv.shape == (2, 2, len(PROMPT), 2, 8)
    assert part.nbytes > part.kv.nbytes == len(PROMPT) * part.format.token_bytes
    root = there.import_path(part)
    assert root.path_tokens == PROMPT
    assert there.stats().prefill_tokens == 0
    assert_like_recomputed(there, root, recompute)
    assert (there.stats().prefill_tokens, there.stats().retips) == (0, 0), "its hidden state came with it"
    assert there.stats().imported_tokens == here.stats().exported_tokens == len(PROMPT)


@pytest.mark.parametrize("prompt", [5, 16, 21])
@pytest.mark.parametrize("page_size", [8, 16])
def test_parts_are_put_together_below_what_is_there(
    make_engine: Make, recompute: Any, prompt: int, page_size: int
) -> None:
    here, there = make_engine(), make_engine(page_size=page_size)
    root = here.prefill(PROMPT[:prompt])
    child = root.fork()[0]
    here.decode(child, max_tokens=9, temperature=1.0)
    leaf = child.at(4).fork()[0]
    here.decode(leaf, max_tokens=7, temperature=1.0)

    copy = there.prefill(PROMPT[:prompt])
    middle = there.import_path(frozen(here.export_path(leaf, prompt, prompt + 4)), below=copy)
    end = there.import_path(frozen(here.export_path(leaf, prompt + 4)), below=middle)
    assert end.path_tokens == leaf.path_tokens
    assert middle.logprobs + end.logprobs == child.logprobs[:4] + leaf.logprobs
    assert middle.tip < 0, "the hidden state in the middle of a segment is gone"
    for node in (copy, middle, end):
        assert_like_recomputed(there, node, recompute)
    other = there.import_path(frozen(here.export_path(child, prompt)), below=copy)
    assert_like_recomputed(there, other, recompute)
    assert_like_recomputed(there, end, recompute)


def test_only_what_is_not_cached_is_written(make_engine: Make, recompute: Any) -> None:
    here, there = make_engine(), make_engine()
    there.prefill(PROMPT[:20]).release()
    part = here.export_path(here.prefill(PROMPT))
    root = there.import_path(part)
    assert (root.base, root.path_tokens) == (20, PROMPT)
    assert_like_recomputed(there, root, recompute)
    again = there.import_path(part)
    assert (again.base, again.tokens) == (len(PROMPT), [])
    assert_like_recomputed(there, again, recompute)
    assert there.stats().imported_tokens == len(PROMPT) - 20


def test_an_imported_root_is_found_by_prompts(make_engine: Make) -> None:
    here, there = make_engine(), make_engine()
    there.import_path(here.export_path(here.prefill(PROMPT)))
    assert there.prefill([*PROMPT, 50]).base == len(PROMPT)


def test_sampling_and_penalties_go_on_as_they_would_have(make_engine: Make) -> None:
    here, there = make_engine(), make_engine()
    root = here.prefill(PROMPT)
    child = root.fork()[0]
    here.decode(child, max_tokens=10, temperature=1.0)
    copy = there.import_path(here.export_path(child))
    assert copy.logprobs == child.logprobs
    settings = {"max_tokens": 10, "seed": 4, "presence_penalty": 1.5, "frequency_penalty": 0.5}
    kids = [(engine, node.fork()[0]) for engine, node in ((here, child), (there, copy))]
    for engine, kid in kids:
        engine.decode(kid, **settings)
    assert kids[0][1].tokens == kids[1][1].tokens


def test_half_precision_travels_bit_by_bit() -> None:
    decoder = Decoder.random(TINY, dtype=torch.bfloat16, seed=3)
    here, there = Engine(decoder), Engine(decoder)
    part = frozen(here.export_path(here.prefill(PROMPT)))
    assert (part.kv.dtype, part.format.dtype) == (np.uint16, "bfloat16")
    copy = there.import_path(part)
    assert (there.export_path(copy).kv == part.kv).all()
    assert torch.equal(logits(there, copy), logits(here, here.prefill(PROMPT)))


def test_a_node_may_be_exported_while_it_decodes(make_engine: Make, recompute: Any) -> None:
    here, there = make_engine(), make_engine()
    child = here.prefill(PROMPT).fork()[0]
    [generation] = here.submit(child, max_tokens=20, temperature=0.0)
    for _ in range(5):
        here.step()
    assert_like_recomputed(there, there.import_path(here.export_path(child)), recompute)
    here._run_until(generation)
    assert len(child.tokens) == 20


# ---------------------------------------------------------------- what is refused


def test_without_pages_nothing_is_changed(make_engine: Make) -> None:
    here, there = make_engine(), make_engine(kv_tokens=64)
    held = there.prefill(range(40, 64))
    before = there.stats()
    with pytest.raises(OutOfPages):
        there.import_path(here.export_path(here.prefill(PROMPT)))
    child = held.fork()[0]
    with pytest.raises(OutOfPages):
        there.import_path(here.export_path(here.prefill([*range(40, 64), *PROMPT]), 24), below=child)
    after = there.stats()
    assert (after.pages_held, after.pages_free) == (before.pages_held, before.pages_free)
    child.release()
    held.release()
    there.import_path(here.export_path(here.prefill(PROMPT)))


def test_cached_prompts_make_room(make_engine: Make) -> None:
    here, there = make_engine(), make_engine(kv_tokens=64)
    there.prefill(range(40, 80)).release()
    root = there.import_path(here.export_path(here.prefill(PROMPT)))
    root.release()
    root.release()
    there.close()
    assert there.stats().pages_free == there.stats().pages_total


def test_what_was_imported_gives_way_and_is_computed_again(make_engine: Make, recompute: Any) -> None:
    here, there = make_engine(), make_engine(kv_tokens=80)
    copy = there.import_path(here.export_path(here.prefill(PROMPT)))
    other = there.prefill(range(36, 96))
    assert there.stats().pages_held == 4
    other.release()
    there.close()
    assert_like_recomputed(there, copy, recompute)
    assert there.stats().recomputed_tokens == len(PROMPT)


def test_another_model_type_or_shape_is_refused(make_engine: Make) -> None:
    engine = make_engine()
    part = engine.export_path(engine.prefill(PROMPT))
    for decoder, field in (
        (Decoder.random(TINY, seed=4), "model"),
        (Decoder.random(dataclasses.replace(TINY, num_layers=1), seed=3), "model"),
        (Decoder.random(dataclasses.replace(TINY, vocab_size=7), seed=3), "model"),
        (Decoder.random(TINY, dtype=torch.bfloat16, seed=3), "model"),
    ):
        with pytest.raises(KvFormatMismatch) as caught:
            Engine(decoder).import_path(part)
        assert caught.value.field == field
    for field, value in (("dtype", "bfloat16"), ("layers", 3), ("kv_heads", 1), ("head_dim", 4), ("width", 1)):
        other = dataclasses.replace(part, format=dataclasses.replace(part.format, **{field: value}))
        with pytest.raises(KvFormatMismatch, match=field):
            engine.import_path(other)
    assert Engine(Decoder.random(TINY, seed=3)).import_path(part).path_tokens == PROMPT


@pytest.mark.parametrize(
    ("field", "damage"),
    [
        ("kv", lambda part: part.kv[:, :, 1:]),
        ("kv", lambda part: part.kv.astype(np.float64)),
        ("tip", lambda part: part.tip[1:]),
        ("logprobs", lambda part: np.zeros(len(part.tokens) + 1)),
        ("tokens", lambda part: part.tokens + 1_000),
        ("start", lambda part: 3),
    ],
)
def test_damaged_parts_are_refused(engine: Engine, field: str, damage: Callable[[PathKv], Any]) -> None:
    part = engine.export_path(engine.prefill(PROMPT))
    with pytest.raises(InvalidArgument, match=field):
        engine.import_path(dataclasses.replace(part, **{field: damage(part)}))


def test_places_that_are_not_there_are_refused(make_engine: Make) -> None:
    here, there = make_engine(), make_engine()
    root = here.prefill(PROMPT)
    for start, end in ((-1, 5), (5, 5), (0, len(PROMPT) + 1)):
        with pytest.raises(InvalidArgument, match="start"):
            here.export_path(root, start, end)
    with pytest.raises(InvalidArgument, match="node of this engine"):
        there.export_path(root)
    part = here.export_path(root)
    with pytest.raises(InvalidArgument, match="start"):
        here.import_path(part, below=root)
    tail = here.export_path(root, 20)
    with pytest.raises(InvalidArgument, match=r"seed=7: None with `below`"):
        here.import_path(tail, below=here.prefill(PROMPT[:20]), seed=7)
    short = here.prefill(PROMPT[:20])
    short.release()
    with pytest.raises(NodeReleased):
        here.import_path(tail, below=short)
    root.release()
    with pytest.raises(NodeReleased):
        here.export_path(root)


def test_a_path_that_leaves_no_room_is_refused(make_engine: Make) -> None:
    here, there = make_engine(), make_engine(kv_tokens=64)
    part = here.export_path(here.prefill([*PROMPT, *PROMPT]))
    with pytest.raises(ContextOverflow):
        there.import_path(part)
    assert there.stats().pages_held == 0


def test_kv_that_is_not_there_is_not_exported_nor_continued(engine: Engine) -> None:
    root, job = engine.submit_prefill(PROMPT)
    with pytest.raises(KvNotComputed):
        engine.export_path(root)
    other = engine.prefill([9, *PROMPT])
    tail = dataclasses.replace(engine.export_path(other, 20), start=len(PROMPT))
    waiting, job = engine.submit_prefill([8, *PROMPT[1:]])
    with pytest.raises(KvNotComputed):
        engine.import_path(tail, below=waiting)
    assert waiting.child_count == 0
    engine._run_until(job)
