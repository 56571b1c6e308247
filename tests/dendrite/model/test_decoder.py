"""The decoder against `transformers`, for every supported family and however the tokens reach it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path as FilePath

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from dendrite.attention.base import ForwardBatch
from dendrite.errors import InvalidArgument
from dendrite.model.decoder import Decoder
from tests.dendrite.model.families import FAMILIES, VOCABULARY, make_model
from tests.dendrite.model.paged import PagedDecoder, Path
from tests.tiny_config import TINY

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=FAMILIES)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Decoder]:
    folder = tmp_path_factory.mktemp("model")
    reference = make_model(request.param)
    reference.save_pretrained(folder)
    return reference, Decoder.from_folder(folder)


def tokens_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_prefill_gives_the_logits_of_transformers(models: tuple[PreTrainedModel, Decoder]) -> None:
    reference, decoder = models
    tokens = tokens_of(101)
    (logits,) = PagedDecoder(decoder).run([(Path(), tokens)])
    assert_close(logits, reference_logits(reference, tokens))


def test_chunked_prefill_and_decode_give_the_logits_of_transformers(
    models: tuple[PreTrainedModel, Decoder],
) -> None:
    reference, decoder = models
    paged, path, tokens = PagedDecoder(decoder), Path(), tokens_of(60)
    bounds = [0, 16, 19, 40, 56, 57, 58, 59, 60]
    parts = [paged.run([(path, tokens[a:b])])[0] for a, b in itertools.pairwise(bounds)]
    assert_close(torch.cat(parts), reference_logits(reference, tokens))


@pytest.mark.parametrize("length", [16, 21])
def test_forked_paths_give_the_logits_of_a_fresh_prefill(models: tuple[PreTrainedModel, Decoder], length: int) -> None:
    reference, decoder = models
    paged, parent = PagedDecoder(decoder), Path()
    paged.run([(parent, tokens_of(30))])
    children = [paged.fork(parent, length) for _ in range(2)]
    shared = [(0, 2, length // paged.page_size)]
    found: list[list[Tensor]] = [[], []]
    for step in range(12):
        # The parent decodes on in the same batch, in the page whose filled slots the children have copied.
        work = [(child, [(7 * step + 31 * i) % VOCABULARY]) for i, child in enumerate(children)]
        logits = paged.run([*work, (parent, [step])], shared)
        found[0].append(logits[0])
        found[1].append(logits[1])
    for child, rows in zip(children, found, strict=True):
        assert_close(torch.cat(rows), reference_logits(reference, child.tokens)[length:])
    assert_close(paged.run([(parent, [1])])[0], reference_logits(reference, parent.tokens)[-1:])


def test_greedy_continuations_are_those_of_generate(models: tuple[PreTrainedModel, Decoder]) -> None:
    reference, decoder = models
    prompts = [tokens_of(5 + 9 * i, seed=i) for i in range(5)]
    settings = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        # Without the mask, `generate` takes a prompt's tokens of id 0 for padding.
        made = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        expected.append(made[0].tolist())
    paged = PagedDecoder(decoder)
    paths = [Path() for _ in prompts]
    new: list[list[int]] = prompts
    for _ in range(20):
        logits = paged.run(list(zip(paths, new, strict=True)))
        new = [[int(rows[-1].argmax())] for rows in logits]
    assert [path.tokens + last for path, last in zip(paths, new, strict=True)] == expected


def test_bfloat16_stays_near_float32(models: tuple[PreTrainedModel, Decoder], tmp_path: FilePath) -> None:
    reference, _ = models
    reference.save_pretrained(tmp_path)
    tokens = tokens_of(50)
    (logits,) = PagedDecoder(Decoder.from_folder(tmp_path, dtype=torch.bfloat16)).run([(Path(), tokens)])
    expected = reference_logits(reference, tokens)
    assert (logits - expected).norm() <= 5e-2 * expected.norm()


CONFIG = replace(TINY, vocab_size=50, max_context=128)


def test_random_weights_repeat_by_seed() -> None:
    first, again, other = (Decoder.random(CONFIG, seed=seed) for seed in (1, 1, 2))
    hidden = torch.eye(32)
    assert torch.equal(first.logits(hidden), again.logits(hidden))
    assert not torch.equal(first.logits(hidden), other.logits(hidden))
    assert torch.equal(first.weights.norm, torch.ones(32))


def test_an_empty_batch_is_refused() -> None:
    paged = PagedDecoder(Decoder.random(CONFIG))
    empty = torch.empty(0, dtype=torch.int64)
    batch = ForwardBatch(empty, empty, empty, [0], [], torch.empty(0, 0, dtype=torch.int64), [])
    with pytest.raises(InvalidArgument, match="tokens"):
        paged.decoder.forward(batch, paged.attention)


@pytest.mark.gpu
def test_cuda_gives_the_logits_of_transformers(models: tuple[PreTrainedModel, Decoder], tmp_path: FilePath) -> None:
    reference, _ = models
    reference.save_pretrained(tmp_path)
    paged, path, tokens = PagedDecoder(Decoder.from_folder(tmp_path, device="cuda")), Path(), tokens_of(40)
    parts = [paged.run([(path, part)])[0].cpu() for part in (tokens[:30], tokens[30:39], tokens[39:])]
    assert_close(torch.cat(parts), reference_logits(reference, tokens))
