"""What can run where: unsupported combinations are refused before anything is allocated, with what to use instead."""

from __future__ import annotations

import torch

from dendrite.errors import InvalidArgument
from dendrite.model.config import ModelConfig
from dendrite.quant.linear_mx import load_flashinfer
from dendrite.quant.scheme import QuantizeMode

_FP8_CAPABILITY = (8, 9)
_MX_CAPABILITY = (10, 0)
_PRODUCT_MULTIPLE = 16  # what cuBLAS asks of the sizes of FP8 products
_MX_MULTIPLE = 32


def check_weights(
    mode: QuantizeMode | None,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    capability: tuple[int, int] | None = None,
) -> None:
    """Refuse a mode of quantised products that this device, type or model does not allow.

    Args:
        mode: as asked for; None is what the checkpoint's scheme makes of it.
        config: of the model.
        dtype: of the activations.
        device: where it shall run.
        capability: compute capability, (major, minor); None asks the device.

    Raises:
        InvalidArgument: naming the reason and what to use.
        MissingDependency: the product of this mode comes from a package that is not installed.
    """
    stored = config.stored
    mode = mode or (stored.modes[0] if stored is not None else None)
    if mode is None or device.type != "cuda":
        return
    capability = capability or torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        raise InvalidArgument("quantize", mode, f"{_has(capability)} no FP8 (8.9, Ada, is the first); use None")
    if mode == "mxfp8":
        if capability < _MX_CAPABILITY:
            limit = (
                f"{_has(capability)} no MXFP8 products (10.0, Blackwell, is the first); use mxfp8_weight_only or fp8"
            )
            raise InvalidArgument("quantize", mode, limit)
        if dtype not in (torch.bfloat16, torch.float16):
            limit = f"MXFP8 products give bfloat16 or float16, not {dtype}; use one of these, or mxfp8_weight_only"
            raise InvalidArgument("quantize", mode, limit)
        _check_sizes(mode, config, _MX_MULTIPLE)
        load_flashinfer()
    if mode == "fp8":
        if dtype != torch.bfloat16:
            limit = f"FP8 products with a scale a row give bfloat16, not {dtype}; use that, or fp8_weight_only"
            raise InvalidArgument("quantize", mode, limit)
        _check_sizes(mode, config, _PRODUCT_MULTIPLE)


def check_kv(
    kv_dtype: str,
    config: ModelConfig,
    page_size: int,
    device: torch.device,
    capability: tuple[int, int] | None = None,
) -> None:
    """Refuse FP8 keys and values where no kernel reads them.

    Raises:
        InvalidArgument: naming the reason and what to use.
    """
    if kv_dtype != "fp8" or device.type != "cuda":
        return
    capability = capability or torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        raise InvalidArgument("kv_dtype", kv_dtype, f"{_has(capability)} no FP8 (8.9, Ada, is the first); use auto")
    from dendrite.attention.tree import check_shape  # Triton is there where CUDA is

    try:
        check_shape(config.num_heads, config.num_kv_heads, config.head_dim, page_size)
    except InvalidArgument as error:
        limit = f"no kernel reads FP8 keys and values of this model ({error}); use auto"
        raise InvalidArgument("kv_dtype", kv_dtype, limit) from None


def _check_sizes(mode: QuantizeMode, config: ModelConfig, multiple: int) -> None:
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads * head_dim": config.query_size,
        "num_kv_heads * head_dim": config.kv_size,
    }
    for name, size in sizes.items():
        if size % multiple:
            limit = f"{name}={size} must be a multiple of {multiple} for its products; use {_weight_only(mode)}"
            raise InvalidArgument("quantize", mode, limit)


def _weight_only(mode: QuantizeMode) -> str:
    return f"{mode}_weight_only"


def _has(capability: tuple[int, int]) -> str:
    return f"a GPU of compute capability {capability[0]}.{capability[1]} has"
