"""Arrays side by side, on both sides."""

from __future__ import annotations

import torch

from dendrite.transfer import Mirror, Staging, send

CPU = torch.device("cpu")
FIELDS = {"one": ((1,), torch.int32), "wide": ((3,), torch.int64), "real": ((2, 2), torch.float32)}


def test_what_the_host_writes_arrives_and_comes_back() -> None:
    mirror = Mirror(FIELDS, CPU)
    addresses = {name: tensor.data_ptr() for name, tensor in mirror.device.items()}
    mirror.host["one"][:] = 7
    mirror.host["wide"][:] = [1, 2**40, -3]
    mirror.host["real"][:] = 0.5
    assert not mirror.device["wide"].any()
    mirror.upload()
    assert mirror.device["wide"].tolist() == [1, 2**40, -3]
    assert mirror.device["one"].item() == 7
    mirror.device["real"] += 1
    mirror.download()
    assert mirror.host["real"].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert mirror.host["one"].tolist() == [7]
    assert addresses == {name: tensor.data_ptr() for name, tensor in mirror.device.items()}


def test_numbers_are_sent_as_they_are() -> None:
    assert send([3, -1, 2**50], CPU).tolist() == [3, -1, 2**50]


def test_only_the_ranges_given_are_sent() -> None:
    target = torch.zeros(6, dtype=torch.int32)
    staging = Staging(target)
    for number in (1, 2):
        staging.take()[:] = number
        staging.send((number, number + 1), (4, 6))
        assert target[4:].tolist() == [number] * 2
    assert target[:4].tolist() == [0, 1, 2, 0]
