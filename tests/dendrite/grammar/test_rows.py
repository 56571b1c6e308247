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
    rows.host[1], rows.host[3], rows.host[5] = first, second, first
    rows.upload(4)
    assert rows.device[1].tolist() == first.tolist()
    assert rows.device[3].tolist() == second.tolist()
    assert not rows.device[5].any(), "beyond the rows that are sent"
    if rows.device.is_cuda:
        torch.cuda.synchronize()
    rows.host[1] = second
    rows.upload(2)
    assert rows.device[1].tolist() == second.tolist()
    assert rows.device.data_ptr() == address
