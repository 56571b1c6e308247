"""Quantised matrices: what they stand for, and what they take."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dendrite.errors import InvalidArgument
from dendrite.quant.formats import E4M3
from dendrite.quant.weights import QuantizedWeight, Scales, by_mx_blocks, by_rows, by_tensor

WAYS = {"rows": by_rows, "tensor": by_tensor, "mx": by_mx_blocks}
Way = Callable[[torch.Tensor], QuantizedWeight]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(sorted(WAYS)), st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**31))
def test_a_weight_is_kept_to_the_precision_of_its_elements(name: str, rows: int, columns: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    found = WAYS[name](weight).dequantize(torch.float32)
    largest = weight.abs().amax().item()
    # Half a unit in the last place, or of the smallest step: 2^-10 of a scale that is at most largest / 448 * 2.
    limit = torch.maximum(weight.abs() * 2.0**-4, torch.tensor(largest / 448 * 2 * 2.0**-10)) * 1.0001
    assert bool(((found - weight).abs() <= limit).all())


@given(st.sampled_from(sorted(WAYS)), st.integers(1, 40), st.integers(1, 100))
def test_bytes_are_what_is_allocated(name: str, rows: int, columns: int) -> None:
    weight = WAYS[name](matrix(rows, columns))
    scales = rows * 4 if name != "mx" else rows * math.ceil(columns / 32)
    assert weight.nbytes == rows * columns + scales
    assert weight.elements.element_size() == 1
    assert weight.scales.values.is_contiguous()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_rows_are_those_of_the_matrix(way: Way) -> None:
    weight = way(matrix(10, 70))
    index = torch.tensor([3, 3, 9, 0])
    assert torch.equal(weight.rows(index, torch.float32), weight.dequantize(torch.float32)[index])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_quantising_again_changes_nothing(way: Way) -> None:
    once = way(matrix(8, 64)).dequantize(torch.float32)
    torch.testing.assert_close(way(once).dequantize(torch.float32), once, rtol=1e-6, atol=0)


def test_rows_of_zeros_and_of_very_different_sizes() -> None:
    weight = torch.stack((torch.zeros(40), matrix(1, 40)[0] * 1e-30, matrix(1, 40)[0] * 1e30))
    found = by_rows(weight).dequantize(torch.float32)
    assert torch.equal(found[0], torch.zeros(40))
    for row in (1, 2):
        torch.testing.assert_close(
            found[row] / weight[row].abs().amax(), weight[row] / weight[row].abs().amax(), rtol=0.07, atol=1e-5
        )


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_weights_that_are_not_finite_are_refused(way: Way, value: float) -> None:
    weight = matrix(4, 40)
    weight[2, 3] = value
    with pytest.raises(InvalidArgument, match="finite"):
        way(weight)


def test_what_does_not_go_together_is_refused() -> None:
    elements = torch.zeros(4, 64, dtype=E4M3)
    for wrong in (torch.ones(3), torch.ones(4, dtype=torch.bfloat16), torch.ones(4, 2)):
        with pytest.raises(InvalidArgument, match="scales"):
            QuantizedWeight(elements, Scales(wrong, 0))
    with pytest.raises(InvalidArgument, match="scales"):
        QuantizedWeight(elements, Scales(torch.ones(4, 1, dtype=torch.uint8), 128))
    for wrong in (torch.zeros(4, 64), torch.zeros(64, 4, dtype=E4M3).t()):
        with pytest.raises(InvalidArgument, match="elements"):
            QuantizedWeight(wrong, Scales(torch.ones(4), 0))
