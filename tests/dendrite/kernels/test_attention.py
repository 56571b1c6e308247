from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dendrite.kernels.attention import merge_partials

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("rows", "splits", "dim"), [(3, 1, 16), (5, 40, 16), (40, 18, 16), (70, 6, 16), (5, 20, 128)])
def test_merging_weighs_partial_results_by_their_sums(rows: int, splits: int, dim: int) -> None:
    """Every number of partial results that a row may have, and logarithms too far apart for their exponentials."""
    generator = torch.Generator().manual_seed(rows)
    heads = 2
    partials = torch.randn(rows, splits, heads, dim, generator=generator)
    logsums = torch.randn(rows, splits, heads, generator=generator) * 300
    counts = torch.arange(rows, dtype=torch.int32) * splits // (rows - 1)
    expected = torch.zeros(rows, heads, dim, dtype=torch.float64)
    for row, count in enumerate(counts.tolist()):
        weights = torch.softmax(logsums[row, :count].double() * torch.log(torch.tensor(2.0)), 0)
        expected[row] = (weights.unsqueeze(-1) * partials[row, :count]).sum(0)
    unused = torch.arange(splits) >= counts.unsqueeze(1)
    partials[unused] = float("nan")  # what an earlier batch left there
    logsums[unused] = float("nan")
    output = torch.full((rows, heads, dim), float("nan"), device=DEVICE)
    merge_partials(
        partials.view(-1, heads, dim).to(DEVICE),
        logsums.view(-1, heads).to(DEVICE),
        counts.to(DEVICE),
        output,
        rows=rows,
        splits=splits,
    )
    torch.testing.assert_close(output.cpu().double(), expected, rtol=1e-4, atol=1e-5)
