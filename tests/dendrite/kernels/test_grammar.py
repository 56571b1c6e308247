"""Masking on the device against the host's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from dendrite.errors import InvalidArgument
from dendrite.grammar.compiler import bits_of
from dendrite.grammar.masks import masked
from dendrite.kernels.grammar import mask_blocks, mask_logits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ["some", "none", "one", "some"]


def random_bits(vocabulary: int, kind: str, noise: np.random.Generator) -> np.ndarray:
    if kind == "one":
        return bits_of([int(noise.integers(vocabulary))], vocabulary)
    return bits_of(noise.permutation(vocabulary)[: max(1, vocabulary // 3)].tolist(), vocabulary)


def apply(logits: torch.Tensor, bits: torch.Tensor, constrained: list[int], *, pdl: bool = False) -> torch.Tensor:
    rows = len(logits)
    workspace = torch.full((rows, mask_blocks(logits.shape[1]), 4), torch.nan, device=logits.device)
    log_mass = torch.full((rows,), torch.nan, device=logits.device)
    flags = torch.tensor(constrained, dtype=torch.int32, device=logits.device)
    mask_logits(logits, bits, flags, workspace, log_mass, pdl=pdl)
    return log_mass


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 1024, 1025, 3000])
def test_rows_lose_what_their_bits_forbid_and_others_nothing(vocabulary: int) -> None:
    noise = np.random.default_rng(vocabulary)
    raw = torch.from_numpy(noise.normal(0, 3, (len(KINDS), vocabulary)).astype(np.float32))
    rows = [row for row, kind in enumerate(KINDS) if kind != "none"]
    bits = [random_bits(vocabulary, kind, noise) for kind in KINDS]
    expected = masked(raw, rows, [bits[row] for row in rows])
    logits = raw.clone().to(DEVICE)
    log_mass = apply(logits, torch.from_numpy(np.stack(bits)).to(DEVICE), [int(kind != "none") for kind in KINDS])
    assert torch.equal(logits.cpu(), expected)
    mass = (expected.double().logsumexp(1) - raw.double().logsumexp(1)).float()
    torch.testing.assert_close(log_mass.cpu(), mass, atol=1e-5, rtol=1e-5)
    assert log_mass[1] == 0


def test_the_bits_of_rows_without_a_grammar_are_not_read() -> None:
    logits = torch.randn(2, 40, device=DEVICE)
    before = logits.clone()
    log_mass = apply(logits, torch.zeros(2, 2, dtype=torch.int32, device=DEVICE), [0, 0])
    assert torch.equal(logits, before)
    assert log_mass.tolist() == [0, 0]


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="a bit for each of 65 tokens"):
        apply(torch.randn(1, 65, device=DEVICE), torch.zeros(1, 2, dtype=torch.int32, device=DEVICE), [1])


@pytest.mark.gpu
@pytest.mark.parametrize("vocabulary", [32_000, 128_256])
def test_a_graph_masks_with_the_bits_of_the_moment(vocabulary: int) -> None:
    noise = np.random.default_rng(1)
    raw = torch.randn(64, vocabulary, device="cuda")
    bits = torch.zeros(64, -(-vocabulary // 32), dtype=torch.int32, device="cuda")
    flags = torch.tensor([row % 2 for row in range(64)], dtype=torch.int32, device="cuda")
    logits, workspace = raw.clone(), torch.empty(64, mask_blocks(vocabulary), 4, device="cuda")
    log_mass = torch.empty(64, device="cuda")
    mask_logits(logits, bits, flags, workspace, log_mass)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits.copy_(raw)
        mask_logits(logits, bits, flags, workspace, log_mass, pdl=torch.cuda.get_device_capability() >= (9, 0))
    for _ in range(3):
        rows = [random_bits(vocabulary, "some", noise) for _ in range(64)]
        bits.copy_(torch.from_numpy(np.stack(rows)))
        graph.replay()
        expected = masked(raw, list(range(1, 64, 2)), rows[1::2])
        assert torch.equal(logits, expected)
        mass = expected.double().logsumexp(1) - raw.double().logsumexp(1)
        torch.testing.assert_close(log_mass.double(), mass, atol=1e-4, rtol=1e-4)
