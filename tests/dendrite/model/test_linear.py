"""Matrix products: packed or not, they are the same product."""

from __future__ import annotations

import pytest
import torch

from dendrite.model.linear import Linear, padded_rows


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_float32_products_are_those_of_torch(rows: int, bias: bool, pack: bool) -> None:
    weight, offset, inputs = torch.randn(40, 24), torch.randn(40), torch.randn(rows, 24)
    with torch.inference_mode():
        found = Linear(weight, offset if bias else None, pack=pack)(inputs)
    expected = inputs @ weight.T + (offset if bias else 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_few_numbers_of_rows_stand_for_all() -> None:
    # Each is a compiled product that oneDNN keeps, so a server must not have one for every size of a batch.
    padded = [padded_rows(rows) for rows in range(2049)]
    assert all(rows <= more <= 1.25 * rows for rows, more in enumerate(padded))
    assert all(padded_rows(more) == more for more in padded)
    assert len(set(padded)) < 100


@pytest.mark.parametrize("rows", [0, 17, 33, 250, 257, 513])
def test_rows_that_are_added_are_not_seen(rows: int) -> None:
    weight, offset, inputs = torch.randn(40, 24), torch.randn(40), torch.randn(rows, 24)
    with torch.inference_mode():
        found = Linear(weight, offset)(inputs)
    assert found.shape == (rows, 40)
    torch.testing.assert_close(found, inputs @ weight.T + offset, rtol=1e-5, atol=1e-5)


def test_strided_inputs_are_taken_as_they_are() -> None:
    weight, inputs = torch.randn(40, 24), torch.randn(9, 48)
    torch.testing.assert_close(Linear(weight)(inputs[:, 24:]), inputs[:, 24:] @ weight.T, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_bfloat16() -> None:
    product = Linear(torch.randn(8, 4, dtype=torch.bfloat16))(torch.randn(3, 4, dtype=torch.bfloat16))
    assert product.dtype == torch.bfloat16
