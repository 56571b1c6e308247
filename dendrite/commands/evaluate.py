"""`dendrite eval`: how good a model is, by numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dendrite.commands import options
from dendrite.commands.files import read_text
from dendrite.commands.group import Commands
from dendrite.errors import InvalidArgument

if TYPE_CHECKING:
    from dendrite.config import EngineConfig
    from dendrite.evaluation.perplexity import Perplexity, Scorer
    from dendrite.model.tokenizer import Tokenizer

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Measure a model.")


@app.callback()
def _group() -> None:
    """Keep `perplexity` a command of its own while it is the only one."""


@dataclass(frozen=True, slots=True)
class _Subject:
    scorer: Scorer
    tokenizer: Tokenizer
    weight_bytes: int


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="A packaged model, or the path of a Hugging Face folder.")],
    data: Annotated[Path, typer.Option(help="Text file, UTF-8.")],
    window: Annotated[int, typer.Option(min=2, help="Tokens that are run together.")] = 512,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens from window to window; half a window by default.")
    ] = None,
    bos: Annotated[
        bool, typer.Option("--bos", help="Begin each window with the model's beginning-of-sequence token.")
    ] = False,
    against: Annotated[
        str | None, typer.Option(help="A model to compare predictions with, as its folder has it.")
    ] = None,
    quantize: options.Quantize = None,
    kv_dtype: options.KvDtype = "auto",
    device: options.Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="Type of weights and activations: float32, bfloat16, float16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON.")] = False,
) -> None:
    """Perplexity per token of a text in sliding windows, and with --against the KL divergence from another model.

    Every token but the first is scored once (the first too with --bos), after up to `window` - 1 tokens of context.
    """
    from dendrite.config import EngineConfig, checked
    from dendrite.evaluation.perplexity import evaluate
    from dendrite.evaluation.windows import sliding_windows

    config = checked(EngineConfig, {"device": device, "dtype": dtype, "quantize": quantize, "kv_dtype": kv_dtype})
    text, longest = read_text("data", data), window + bos
    subject = _load(model, config, longest)
    tokens = subject.tokenizer.encode(text, add_special_tokens=False)
    stride = stride if stride is not None else max(1, window // 2)
    windows = sliding_windows(tokens, window, stride, _bos(subject.tokenizer, model) if bos else None)
    other = None
    if against is not None:
        plain = config.model_copy(update={"quantize": None, "kv_dtype": "auto"})
        other = _load(against, plain, longest)
        if other.tokenizer.encode(text, add_special_tokens=False) != tokens:
            raise InvalidArgument("against", against, f"must split the text into the same tokens as {model}")
    found = evaluate(subject.scorer, windows, other.scorer if other is not None else None)
    reference = evaluate(other.scorer, windows) if other is not None else None
    stated = {"model": model, "data": str(data), "window": window, "stride": stride, "bos": bos}
    settings = {"quantize": quantize, "kv_dtype": kv_dtype, "weight_bytes": subject.weight_bytes}
    _show({**stated, **settings, **_measured(found, reference, against)}, as_json)


def _load(model: str, config: EngineConfig, longest: int) -> _Subject:
    from dendrite.engine.device import choose_device, choose_dtype
    from dendrite.evaluation.perplexity import Scorer
    from dendrite.model.decoder import Decoder
    from dendrite.model.folder import resolve
    from dendrite.model.tokenizer import Tokenizer
    from dendrite.quant.kv_scales import read_kv_scales

    folder, device = resolve(model), choose_device(config)
    decoder = Decoder.from_folder(folder, choose_dtype(config, device), device, config.quantize)
    scales = read_kv_scales(folder, decoder.config) if config.kv_dtype == "fp8" else None
    return _Subject(Scorer(decoder, config, scales, longest), Tokenizer.from_folder(folder), decoder.weights.nbytes)


def _bos(tokenizer: Tokenizer, model: str) -> int:
    found: int | None = tokenizer.backend.bos_token_id
    if found is None:
        raise InvalidArgument("bos", True, f"{model} has no beginning-of-sequence token; leave --bos out")
    return found


def _measured(found: Perplexity, reference: Perplexity | None, against: str | None) -> dict[str, Any]:
    measured: dict[str, Any] = {"tokens": found.tokens, "loss": found.loss, "perplexity": found.perplexity}
    if reference is not None:
        measured |= {
            "against": against,
            "against_perplexity": reference.perplexity,
            "ratio": found.perplexity / reference.perplexity,
            "kl": found.kl,
            "agreement": found.agreement,
        }
    return measured


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    table = Table(show_header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table)
