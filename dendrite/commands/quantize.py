"""`dendrite quantize`: a model folder with FP8 or MXFP8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from dendrite.commands import options
from dendrite.commands.files import read_text
from dendrite.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor

    from dendrite.quant.kv_scales import Granularity

_CALIBRATION_WINDOW = 512


def quantize(
    model: Annotated[str, typer.Argument(help="A packaged model, or the path of a Hugging Face folder.")],
    out: Annotated[Path, typer.Option(help="Folder to write, new or empty.")],
    form: Annotated[str, typer.Option("--format", help="fp8 or mxfp8.")] = "fp8",
    scales: Annotated[str, typer.Option(help="Of FP8 weights: one for each row, or for each tensor.")] = "row",
    calibrate: Annotated[
        Path | None, typer.Option(help="Text to calibrate scales of FP8 keys and values on; written too.")
    ] = None,
    kv_scales: Annotated[str, typer.Option(help="With --calibrate: one for each head, or for each tensor.")] = "head",
    tokens: Annotated[int, typer.Option(min=1, help="With --calibrate: most tokens of the text to use.")] = 16_384,
    device: options.Device = "auto",
) -> None:
    """Write a Hugging Face folder whose layers have 8-bit weights. Embedding and lm_head stay as they are."""
    from dendrite.model.folder import resolve
    from dendrite.quant.export import Format, WeightScales, write_quantized
    from dendrite.quant.kv_scales import Granularity

    form = _one_of("format", form, get_args(Format))
    scales = _one_of("scales", scales, get_args(WeightScales))
    granularity = cast("Granularity", _one_of("kv-scales", kv_scales, get_args(Granularity)))
    source = resolve(model)
    text = read_text("calibrate", calibrate) if calibrate is not None else None
    found = _calibrated(source, text, granularity, tokens, device) if text is not None else None
    written = write_quantized(source, out, cast("Format", form), scales=cast("WeightScales", scales), kv_scales=found)
    typer.echo(f"{out}: {written:,} bytes of tensors")


def _calibrated(source: Path, text: str, granularity: Granularity, most: int, device: str) -> Tensor:
    """Scales of keys and values on a text, in windows of its tokens."""
    from dendrite.config import EngineConfig, checked
    from dendrite.engine.device import choose_device
    from dendrite.model.decoder import Decoder
    from dendrite.model.tokenizer import Tokenizer
    from dendrite.quant.kv_scales import calibrate

    config = checked(EngineConfig, {"device": device})
    decoder = Decoder.from_folder(source, device=choose_device(config))
    ids = Tokenizer.from_folder(source).encode(text)[:most]
    size = min(_CALIBRATION_WINDOW, decoder.config.max_context)
    return calibrate(decoder, [ids[at : at + size] for at in range(0, len(ids), size)], granularity)


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise InvalidArgument(field, value, f"must be {' or '.join(allowed)}")
    return value
