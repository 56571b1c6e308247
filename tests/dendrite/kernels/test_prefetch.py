from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
import triton.language as tl

from dendrite.kernels.prefetch import prefetch_share, share_of_warps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def shares_kernel(first_out, length_out, total, threads: tl.constexpr):
    program = tl.program_id(0)
    first, length = share_of_warps(total, program, tl.num_programs(0), threads)
    at = program * threads + tl.arange(0, threads)
    tl.store(first_out + at, first)
    tl.store(length_out + at, length)


@settings(max_examples=15)
@given(total=st.integers(1, 200_000), programs=st.integers(1, 9))
def test_the_shares_cover_the_stretch_and_nothing_else(total: int, programs: int) -> None:
    threads = 64
    first = torch.full((programs * threads,), -1, dtype=torch.int64, device=DEVICE)
    length = torch.full_like(first, -1, dtype=torch.int32)
    shares_kernel[(programs,)](first, length, total, threads)
    for whole in (first, length):  # the threads of a warp ask for the same
        assert torch.equal(whole.view(-1, 32), whole[::32].unsqueeze(1).expand(-1, 32))
    end = 0
    for begin, size in zip(first[::32].tolist(), length[::32].tolist(), strict=True):
        assert size % 16 == 0
        if size > 0:
            assert begin == end
            assert begin % 128 == 0
            end = begin + size
    assert total - 16 < end <= total


@triton.jit
def prefetching_kernel(weight, out, total):
    prefetch_share(weight, total, tl.program_id(0), tl.num_programs(0))
    prefetch_share(None, total, tl.program_id(0), tl.num_programs(0))
    tl.store(out + tl.program_id(0), 1)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 9, 1000, 1 << 22])
def test_prefetching_leaves_everything_as_it_is(size: int) -> None:
    weight = torch.randn(size, device="cuda").bfloat16()
    before = weight.clone()
    out = torch.zeros(132, device="cuda", dtype=torch.int32)
    prefetching_kernel[(132,)](weight, out, weight.nbytes)
    torch.cuda.synchronize()
    assert out.sum() == 132
    assert torch.equal(weight, before)
