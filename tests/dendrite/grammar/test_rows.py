from __future__ import annotations

import pytest
import torch

from dendrite.grammar.compiler import bits_of
from dendrite.grammar.rows import MaskRows

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_rows_in_use_are_sent_to_a_fixed_address(device: str) -> None:
    rows = MaskRows(8, 4, torch.device(device))
    address = rows.device.data_ptr()
    first, second = bits_of([0, 100], 128), bits_of([33], 128)
    rows.upload([1, 3], [first, second])
    assert rows.device[1].tolist() == first.tolist()
    assert rows.device[3].tolist() == second.tolist()
    rows.upload([1], [second])
    assert rows.device[1].tolist() == second.tolist()
    rows.upload([], [])
    assert rows.device.data_ptr() == address
