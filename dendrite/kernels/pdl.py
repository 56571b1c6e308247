"""Programmatic dependent launch: a kernel starts while the one before it on the stream still runs.

A kernel launched so may do beforehand whatever does not depend on its predecessor. All its programs then wait, which
returns when the predecessor has ended and its writes are visible. Since every kernel of a chain waits before it ends,
that holds for all earlier kernels too.
"""

import triton
import triton.language as tl


@triton.jit
def wait_for_previous(pdl: tl.constexpr):
    """Let the next kernel start, then wait for the previous one; nothing where `pdl` is off."""
    if pdl:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def wait_before_next(pdl: tl.constexpr):
    """The same, but the next kernel starts only once all kernels before this one have ended.

    So the next one may read, before it waits, whatever they wrote. Such reads must bypass the first-level cache.
    """
    if pdl:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
