"""Copies of whole pages in all layers."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dendrite.kernels.pages import copy_pages


@pytest.mark.parametrize("heads", [1, 3])
def test_pages_are_copied_in_all_layers_and_nothing_else_changes(heads: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pages = torch.randn(2, 7, 2, 8, heads, 16, device=device)
    expected = pages.clone()
    expected[:, [5, 6]] = pages[:, [1, 3]]
    copy_pages(pages, torch.tensor([1, 3], device=device), torch.tensor([5, 6], device=device))
    assert torch.equal(pages, expected)
