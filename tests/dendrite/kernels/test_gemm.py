"""The tensor-core products against torch: in float32 by the interpreter, in bfloat16 on real shapes on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

pytest.importorskip("triton")

from dendrite.errors import InvalidArgument
from dendrite.kernels.gemm import linear, linear_partials, linear_swiglu, partials_size
from dendrite.kernels.gemm_config import GemmConfig, choose
from tests.dendrite.kernels.layers import relative_error

SIZE = 192
WHOLE = GemmConfig(16, 32, 64)  # divides SIZE
RAGGED = GemmConfig(16, 16, 128)  # does not
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def inputs(rows: int, columns: int, *, biased: bool, size: int = SIZE) -> tuple[Tensor, Tensor, Tensor | None]:
    """Activations, a weight and a bias."""
    x, weight = torch.randn(rows, size, device=DEVICE), torch.randn(columns, size, device=DEVICE) / size**0.5
    return x, weight, torch.randn(columns, device=DEVICE) if biased else None


@pytest.mark.parametrize(("rows", "config"), [(2, WHOLE), (3, RAGGED), (16, WHOLE), (17, RAGGED), (33, None)])
@pytest.mark.parametrize(("columns", "biased"), [(64, True), (50, False), (7, True)])
def test_linear_is_the_product(rows: int, config: GemmConfig | None, columns: int, biased: bool) -> None:
    x, weight, bias = inputs(rows, columns, biased=biased)
    out = torch.full((rows, columns), torch.nan, device=DEVICE)
    linear(x, weight, bias, out, config=config)
    torch.testing.assert_close(out, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


def test_linear_converts_to_the_type_of_its_output() -> None:
    x, weight, _ = inputs(3, 20, biased=False)
    out = torch.empty(3, 20, device=DEVICE)
    linear(x.half(), weight.half(), None, out)
    torch.testing.assert_close(out, x.half().float() @ weight.half().float().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("splits", [1, 2, 3, 4])
@pytest.mark.parametrize(("rows", "columns", "block_k"), [(2, 50, 64), (5, 32, 16), (17, 64, 128)])
def test_each_partial_sum_is_over_its_part_of_the_columns(rows: int, columns: int, block_k: int, splits: int) -> None:
    x, weight, _ = inputs(rows, columns, biased=False)
    config = GemmConfig(16, 32, block_k, splits)
    workspace = torch.full((splits * rows * columns + 5,), torch.nan, device=DEVICE)
    partials = linear_partials(x, weight, workspace, "down", config=config)
    assert partials.shape == (splits, rows, columns)
    assert partials.data_ptr() == workspace.data_ptr()
    assert workspace[-5:].isnan().all()
    span = config.span(SIZE)
    for split, found in enumerate(partials):
        part = slice(split * span, min((split + 1) * span, SIZE))
        torch.testing.assert_close(found, x[:, part] @ weight[:, part].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 192, 200, 5632])
@pytest.mark.parametrize(("block_k", "splits"), [(64, 1), (64, 4), (128, 3)])
def test_the_parts_cover_all_columns(size: int, block_k: int, splits: int) -> None:
    span = GemmConfig(16, 16, block_k, splits).span(size)
    assert span % block_k == 0
    assert span * splits >= size > span * splits - splits * block_k


@pytest.mark.parametrize(("rows", "config"), [(2, WHOLE), (5, RAGGED), (17, WHOLE), (33, None)])
@pytest.mark.parametrize(("inner", "biased"), [(25, True), (64, False)])
def test_swiglu_projects_and_activates(rows: int, config: GemmConfig | None, inner: int, biased: bool) -> None:
    x, weight, bias = inputs(rows, 2 * inner, biased=biased)
    out = torch.full((rows, inner), torch.nan, device=DEVICE)
    linear_swiglu(x, weight, bias, out, config=config)
    gate, up = F.linear(x, weight, bias).chunk(2, dim=1)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_done_is_refused() -> None:
    x, weight, _ = inputs(2, 64, biased=False)
    out = torch.empty(2, 64, device=DEVICE)
    with pytest.raises(InvalidArgument, match="splits=2"):
        linear(x, weight, None, out, config=GemmConfig(16, 32, 64, splits=2))
    with pytest.raises(InvalidArgument, match="splits=2"):
        linear_swiglu(x, weight, None, out[:, :32], config=GemmConfig(16, 32, 64, splits=2))
    with pytest.raises(InvalidArgument, match="workspace=255"):
        linear_partials(x, weight, torch.empty(255, device=DEVICE), "down", config=GemmConfig(16, 32, 64, splits=2))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("block_k", (16, 16, 96)),
        ("block_m", (8, 16, 64)),
        ("splits", (16, 16, 64, 0)),
        ("ahead", (16, 16, 64, 1, 4, 4, 8)),
    ],
)
def test_a_configuration_that_cannot_be_launched_is_refused(field: str, values: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match=field):
        GemmConfig(*values)


@pytest.mark.parametrize("rows", [1, 2, 16, 17, 64, 200])
@pytest.mark.parametrize(("columns", "size"), [(2560, 2048), (2048, 5632), (28672, 4096), (128256, 4096), (50, 192)])
def test_the_chosen_configuration_fits_a_multiprocessor(rows: int, columns: int, size: int) -> None:
    for kind, element_size in itertools.product(("qkv", "output", "gate_up", "down", "linear"), (2, 4)):
        config = choose(kind, rows, columns, size, element_size)
        ring = config.stages * (config.block_m + config.block_n) * config.block_k * element_size
        assert ring <= 220 * 1024
        assert config.splits == 1 or kind not in ("gate_up", "linear")
        assert config.span(size) * (config.splits - 1) < size  # no part is empty


@pytest.mark.parametrize("rows", [1, 64, 300])
def test_a_workspace_of_that_size_serves_all_smaller_batches(rows: int) -> None:
    weight = torch.empty(2048, 5632, device="meta", dtype=torch.bfloat16)
    size = partials_size("down", rows, weight)
    assert all(choose("down", each, 2048, 5632).splits * each * 2048 <= size for each in range(1, rows + 1))


TINYLLAMA = {"size": 2048, "inner": 5632}
LLAMA_8B = {"size": 4096, "inner": 14336}


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [2, 5, 16, 17, 33, 64, 128, 130, 256])
@pytest.mark.parametrize("sizes", [TINYLLAMA, LLAMA_8B], ids=["tinyllama", "llama8b"])
@pytest.mark.parametrize("pdl", [False, True])
def test_real_shapes_in_bfloat16(rows: int, sizes: dict[str, int], pdl: bool) -> None:
    size, inner = sizes.values()
    x = torch.randn(rows, inner).bfloat16().cuda()
    weight = (torch.randn(size, inner) / inner**0.5).bfloat16().cuda()
    expected = x.double() @ weight.double().T

    workspace = torch.full((partials_size("down", rows, weight),), torch.nan, device="cuda")
    partials = linear_partials(x, weight, workspace, "down", pdl=pdl)
    assert relative_error(partials.sum(0), expected) < 1e-4  # tensor cores cut off the last bits of their sums
    out = torch.empty(rows, size, device="cuda")
    linear(x, weight, None, out, pdl=pdl)
    assert relative_error(out, expected) < 1e-4  # tensor cores cut off the last bits of their sums

    normed = torch.randn(rows, size).bfloat16().cuda()
    gate_up = (torch.randn(2 * inner, size) / size**0.5).bfloat16().cuda()
    bias = torch.randn(2 * inner).bfloat16().cuda()
    for shift in (None, bias):
        activated = torch.full((rows, inner), torch.nan, device="cuda", dtype=torch.bfloat16)
        linear_swiglu(normed, gate_up, shift, activated, pdl=pdl)
        gate, up = F.linear(normed.double(), gate_up.double(), None if shift is None else shift.double()).chunk(
            2, dim=1
        )
        assert relative_error(activated, F.silu(gate) * up) < 5e-3


@pytest.mark.gpu
def test_a_large_vocabulary() -> None:
    """The weight is larger than 2 ** 29 elements."""
    x = torch.randn(5, 4096, device="cuda").bfloat16()
    weight = torch.randn(140_000, 4096, device="cuda", dtype=torch.bfloat16)
    out = torch.full((5, 140_000), torch.nan, device="cuda")
    linear(x, weight, None, out, pdl=True)
    torch.testing.assert_close(out, x.float() @ weight.float().T, rtol=1e-3, atol=5e-2)
