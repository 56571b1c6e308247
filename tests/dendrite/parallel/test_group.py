"""Sums over ranks, and the decoder that they make whole."""

from __future__ import annotations

import time
from pathlib import Path as FilePath

import pytest
import torch

from dendrite.errors import InvalidArgument
from dendrite.model.decoder import Decoder
from dendrite.parallel.group import Group
from tests.dendrite.model.families import FAMILIES, VOCABULARY, save_model
from tests.dendrite.model.paged import PagedDecoder, Path
from tests.dendrite.parallel.threads import on_ranks

TOLERANCE = 1e-4
INDIVISIBLE = {"llama-one-kv-head-tied", "qwen2-tied"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_gets_the_sum(dtype: torch.dtype) -> None:
    def work(group: Group) -> torch.Tensor:
        values = torch.arange(6, dtype=dtype).view(2, 3) + group.shard.rank
        group.all_reduce(values)
        return values

    expected = 3 * torch.arange(6, dtype=dtype).view(2, 3) + 3
    assert all(torch.equal(found, expected) for found in on_ranks(3, work))


def test_an_abort_ends_a_sum_that_waits_for_the_rank() -> None:
    def work(group: Group) -> None:
        if group.shard.rank == 0:
            time.sleep(0.2)  # while the other waits
            for _ in range(2):
                group.abort()
        with pytest.raises(RuntimeError):
            group.all_reduce(torch.ones(3))

    on_ranks(2, work)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - INDIVISIBLE))
def test_a_divided_decoder_gives_the_logits_of_the_whole_one(family: str, tmp_path: FilePath) -> None:
    folder = save_model(family, tmp_path)
    noise = torch.Generator().manual_seed(3)
    prompt = torch.randint(VOCABULARY, (37,), generator=noise).tolist()

    def logits(decoder: Decoder) -> torch.Tensor:
        """Of a prefill in two chunks, of a fork inside a page and of both branches' next tokens in one batch."""
        paged, parent = PagedDecoder(decoder), Path()
        found = [paged.run([(parent, part)])[0] for part in (prompt[:20], prompt[20:])]
        child = paged.fork(parent, 21)
        for step in range(5):
            found += paged.run([(child, [step]), (parent, [step + 7])])
        return torch.cat(found)

    whole = logits(Decoder.from_folder(folder))
    for found in on_ranks(2, lambda group: logits(Decoder.from_folder(folder, group=group))):
        assert (found - whole).abs().max() <= TOLERANCE * whole.abs().max()


@pytest.mark.parametrize("family", sorted(INDIVISIBLE))
def test_a_model_that_cannot_be_divided_is_refused(family: str, tmp_path: FilePath) -> None:
    folder = save_model(family, tmp_path)

    def load(group: Group) -> str:
        with pytest.raises(InvalidArgument) as caught:
            Decoder.from_folder(folder, group=group)
        return str(caught.value)

    assert all("key-value heads" in message for message in on_ranks(2, load))
