"""The fused products against torch: in float32 by the interpreter, in bfloat16 on real shapes on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

pytest.importorskip("triton")

from dendrite.errors import InvalidArgument
from dendrite.kernels.linear import gate_up_swiglu, linear, linear_residual, qkv_rope_append
from dendrite.kernels.linear_config import LinearConfig, choose
from tests.dendrite.kernels.layers import EPS, Attention, relative_error

CONFIG = LinearConfig(block_n=16, block_k=128, warps=4, stages=2)
ROWS_AND_CONFIGS = [(1, CONFIG), (1, None), (3, CONFIG)]
SIZE = 192  # not a multiple of block_k


@pytest.mark.parametrize(("rows", "config"), ROWS_AND_CONFIGS)
@pytest.mark.parametrize(("columns", "biased"), [(64, False), (50, True)])
def test_linear_is_the_product(rows: int, config: LinearConfig | None, columns: int, biased: bool) -> None:
    x, weight = torch.randn(rows, SIZE), torch.randn(columns, SIZE) / SIZE**0.5
    bias = torch.randn(columns) if biased else None
    out = torch.full((rows, columns), torch.nan)
    linear(x, weight, bias, out, config=config)
    torch.testing.assert_close(out, F.linear(x, weight, bias))


def test_linear_converts_to_the_type_of_its_output() -> None:
    x, weight = torch.randn(3, SIZE).half(), torch.randn(20, SIZE).half()
    out = torch.empty(3, 20)
    linear(x, weight, None, out)
    torch.testing.assert_close(out, x.float() @ weight.float().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("rows", "config"), ROWS_AND_CONFIGS)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_residual_adds_in_place(rows: int, config: LinearConfig | None, biased: bool) -> None:
    x, weight, hidden = torch.randn(rows, SIZE), torch.randn(50, SIZE) / SIZE**0.5, torch.randn(rows, 50)
    bias = torch.randn(50) if biased else None
    expected = hidden + F.linear(x, weight, bias)
    linear_residual(x, weight, bias, hidden, config=config)
    torch.testing.assert_close(hidden, expected)


@pytest.mark.parametrize(("rows", "config"), ROWS_AND_CONFIGS)
@pytest.mark.parametrize("biased", [False, True])
def test_gate_up_norms_projects_and_activates(rows: int, config: LinearConfig | None, biased: bool) -> None:
    inner = 25
    hidden, norm = torch.randn(rows, SIZE) * 3, torch.rand(SIZE) + 0.5
    weight = torch.randn(2 * inner, SIZE) / SIZE**0.5
    bias = torch.randn(2 * inner) if biased else None
    out = torch.full((rows, inner), torch.nan)
    gate_up_swiglu(hidden, norm, EPS, weight, bias, out, config=config)
    gate, up = F.linear(F.rms_norm(hidden, (SIZE,), norm, EPS), weight, bias).chunk(2, dim=1)
    torch.testing.assert_close(out, F.silu(gate) * up, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "config"), ROWS_AND_CONFIGS)
@pytest.mark.parametrize(("biased", "normed"), [(False, False), (True, False), (False, True)])
def test_qkv_is_what_the_decoder_computes(rows: int, config: LinearConfig | None, biased: bool, normed: bool) -> None:
    case = Attention.random(rows, heads=3, kv_heads=1, head_dim=32, size=64, biased=biased, normed=normed)
    query, kv = case.outputs()
    project(case, query, kv, config)
    expected_query, expected_kv = case.expected()
    torch.testing.assert_close(query, expected_query, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kv, expected_kv, rtol=1e-5, atol=1e-5, equal_nan=True)


def project(
    case: Attention, query: Tensor, kv: Tensor, config: LinearConfig | None = None, *, pdl: bool = False
) -> None:
    qkv_rope_append(
        case.hidden,
        case.norm,
        EPS,
        case.weight,
        case.bias,
        case.qk_norm,
        case.cos_sin,
        case.slots,
        query,
        kv,
        config=config,
        pdl=pdl,
    )


def test_a_head_that_is_no_power_of_two_is_divided() -> None:
    case = Attention.random(2, heads=2, kv_heads=1, head_dim=48, size=64, biased=False, normed=False)
    query, kv = case.outputs()
    project(case, query, kv)
    torch.testing.assert_close(query, case.expected()[0], rtol=1e-5, atol=1e-5)


def test_a_normed_head_that_is_no_power_of_two_is_refused() -> None:
    case = Attention.random(2, heads=2, kv_heads=1, head_dim=48, size=64, biased=False, normed=True)
    with pytest.raises(InvalidArgument, match="head_dim=48"):
        project(case, *case.outputs())


def test_a_head_of_odd_size_is_refused() -> None:
    case = Attention.random(1, heads=2, kv_heads=1, head_dim=33, size=64, biased=False, normed=False)
    with pytest.raises(InvalidArgument, match="head_dim=33"):
        project(case, *case.outputs())


@pytest.mark.parametrize(("field", "values"), [("block_n", (3, 64, 4)), ("block_k", (4, 96, 4)), ("warps", (4, 64, 0))])
def test_a_configuration_must_be_of_powers_of_two(field: str, values: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidArgument, match=field):
        LinearConfig(*values, stages=3)


@pytest.mark.parametrize(("columns", "size"), [(2560, 2048), (2048, 5632), (28672, 4096), (128256, 4096), (50, 192)])
def test_the_chosen_configuration_fits_a_multiprocessor(columns: int, size: int) -> None:
    config = choose(columns, size)
    assert config.block_k < 2 * size  # no tile of which most is padding
    ring = config.stages * config.block_n * config.block_k * 4
    assert ring <= 220 * 1024


TINYLLAMA = {"size": 2048, "inner": 5632, "heads": 32, "kv_heads": 4, "head_dim": 64}
LLAMA_8B = {"size": 4096, "inner": 14336, "heads": 32, "kv_heads": 8, "head_dim": 128}


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("sizes", [TINYLLAMA, LLAMA_8B], ids=["tinyllama", "llama8b"])
@pytest.mark.parametrize("pdl", [False, True])
def test_real_shapes_in_bfloat16(rows: int, sizes: dict[str, int], pdl: bool) -> None:
    size, inner, heads, kv_heads, head_dim = sizes.values()
    with torch.device("cuda"):
        x = torch.randn(rows, inner).bfloat16()
        weight = (torch.randn(size, inner) / inner**0.5).bfloat16()
        hidden = torch.randn(rows, size).bfloat16()
        norm = (torch.rand(size) + 0.5).bfloat16()
        gate_up = (torch.randn(2 * inner, size) / size**0.5).bfloat16()
        out = torch.empty(rows, size)
        activated = torch.empty(rows, inner, dtype=torch.bfloat16)

    linear(x, weight, None, out, pdl=pdl)
    product = x.double() @ weight.double().T
    assert relative_error(out, product) < 1e-4

    residual = hidden.clone()
    linear_residual(x, weight, None, residual, pdl=pdl)
    assert relative_error(residual, hidden.double() + product) < 5e-3

    gate_up_swiglu(hidden, norm, EPS, gate_up, None, activated, pdl=pdl)
    normed = F.rms_norm(hidden.double(), (size,), norm.double(), EPS)
    gate, up = (normed @ gate_up.double().T).chunk(2, dim=1)
    assert relative_error(activated, F.silu(gate) * up) < 1e-2

    for biased, qk_normed in ((False, False), (True, True)):
        with torch.device("cuda"):
            case = Attention.random(
                rows, heads=heads, kv_heads=kv_heads, head_dim=head_dim, size=size, biased=biased, normed=qk_normed
            ).to("cuda", torch.bfloat16)
        query, kv = case.outputs()
        project(case, query, kv, pdl=pdl)
        expected_query, expected_kv = case.to("cuda", torch.float64).expected()
        assert relative_error(query, expected_query) < 1e-2
        written = ~expected_kv.isnan()
        assert torch.equal(kv.isnan(), ~written)
        assert relative_error(kv[written], expected_kv[written]) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3])
def test_overlapping_launches_in_a_graph_equal_serial_ones(rows: int) -> None:
    """A chain in which every kernel reads what the one before it wrote, many times over."""
    size, inner, layers = 1024, 2816, 12
    case = Attention.random(rows, heads=16, kv_heads=4, head_dim=64, size=size, biased=False, normed=False)
    case = case.to("cuda", torch.bfloat16)

    def weights(*shape: int) -> list[Tensor]:
        return [torch.randn(shape, device="cuda").bfloat16() / shape[-1] ** 0.5 for _ in range(layers)]

    output, gate_up, down = weights(size, size), weights(2 * inner, size), weights(size, inner)
    start = case.hidden.clone()
    query, kv = case.outputs()
    activated = torch.empty(rows, inner, device="cuda", dtype=torch.bfloat16)

    def run(*, pdl: bool = True, between: Callable[[], None] = lambda: None) -> None:
        case.hidden.copy_(start)
        for layer in range(layers):
            project(case, query, kv, pdl=pdl)
            between()
            linear_residual(query.view(rows, size), output[layer], None, case.hidden, pdl=pdl)
            between()
            gate_up_swiglu(case.hidden, case.norm, EPS, gate_up[layer], None, activated, pdl=pdl)
            between()
            linear_residual(activated, down[layer], None, case.hidden, pdl=pdl)
            between()

    run(between=torch.cuda.synchronize)
    expected = case.hidden.clone(), query.clone(), kv.clone()
    run(pdl=False)
    assert relative_error(case.hidden, expected[0]) < 1e-2
    replay = capture(run)
    for _ in range(20):
        replay()
        torch.cuda.synchronize()
        for found, wanted in zip((case.hidden, query, kv), expected, strict=True):
            assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


def capture(launch: Callable[[], None]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay
