"""A sequence classifier that runs only what is new of a text: the rest is there from the texts before it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.cache_utils import DynamicCache

from actors.path_cache import Computed, PathCache, Span
from actors.reward_options import RewardOptions, RewardStats
from dendrite.errors import CorruptFile, InvalidArgument, MissingTensor, ModelError, UnsupportedModel
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer

_KINDS = "ForSequenceClassification"
_ATTENTION = {"full_attention", "sliding_attention"}


class RewardScorer:
    """Scores texts by a decoder with a sequence-classification head, which reads a text's last token.

    Of all texts ever scored, each token path is run once, for as long as the cache holds it. What a text earns is, up
    to rounding, what `transformers` makes of the whole of it.
    """

    def __init__(self, folder: str, options: RewardOptions) -> None:
        """Load a Hugging Face folder; nothing is fetched from elsewhere.

        Raises:
            ModelNotFound: there is no such folder.
            UnsupportedModel: it holds no sequence classifier, or one that can't be run piece by piece.
            ModelError: it lacks weights or a tokenizer, or they can't be read.
            InvalidArgument: `positive` doesn't fit the number of labels.
        """
        path = resolve(folder)
        self._options = options
        self._tokenizer = Tokenizer.from_folder(path)
        if not self._tokenizer.available:
            raise ModelError(f"the reward model's folder {path} has no tokenizer")
        self._model = _load(path, options)
        self._decoder = getattr(self._model, self._model.base_model_prefix)
        self._cache_name = _cache_name(self._model, self._decoder)
        text_config = self._model.config.get_text_config()
        self._pad: int | None = text_config.pad_token_id
        self._longest: int | None = getattr(text_config, "max_position_embeddings", None)
        _check_labels(options.positive, self._model.config.num_labels)
        self._paths = PathCache(options.cache_tokens)
        self._texts = self._forwards = self._given = self._run = 0

    @property
    def stats(self) -> RewardStats:
        """Totals so far, and what is held now."""
        return RewardStats(self._texts, self._forwards, self._run, self._given - self._run, self._paths.tokens)

    def encode(self, text: str) -> tuple[int, ...]:
        """The token ids of a text, up to the one that the head reads: the last that is no padding.

        Raises:
            InvalidArgument: it has none.
        """
        tokens = self._tokenizer.encode(text)
        if not tokens:
            raise InvalidArgument("text", text, "must have at least one token")
        while len(tokens) > 1 and tokens[-1] == self._pad:
            tokens.pop()
        return tuple(tokens)

    def score(self, paths: Sequence[tuple[int, ...]]) -> list[float | None]:
        """The value of each text, given as `encode` has it, in [0, 1]; None for one longer than the model's context."""
        fitting = [path for path in paths if self._longest is None or len(path) <= self._longest]
        try:
            ends = {path: self._paths.add(path) for path in fitting}
            while pending := _runnable(ends.values()):
                self._compute(pending)
            found = {path: self._value(end) for path, end in ends.items()}
        except BaseException:
            self._paths.clear()  # some spans may never have been computed
            raise
        self._texts += len(paths)
        self._given += sum(map(len, fitting))
        self._paths.trim()
        return [found.get(path) for path in paths]

    def _value(self, end: Span) -> float:
        assert end.computed is not None
        logits = end.computed.logits[-1].double()
        positive = self._options.positive
        chance = torch.sigmoid(logits[0]) if positive is None else torch.softmax(logits, dim=0)[positive]
        return float(chance)

    @torch.inference_mode()
    def _compute(self, spans: Sequence[Span]) -> None:
        """Run spans whose parents have been run, in one batch.

        What a row has cached is padded on the left, what is new on the right, so that the two meet in one column, and
        distances between tokens are as in the text.
        """
        device = self._model.device
        pasts = [span.path[:-1] for span in spans]
        lengths = [sum(len(above.tokens) for above in past) for past in pasts]
        before, new = max(lengths), max(len(span.tokens) for span in spans)
        ids = torch.zeros((len(spans), new), dtype=torch.long)
        positions = torch.zeros_like(ids)
        mask = torch.zeros((len(spans), before + new), dtype=torch.long)
        for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
            count = len(span.tokens)
            ids[row, :count] = torch.tensor(span.tokens)
            positions[row, :count] = torch.arange(length, length + count)
            mask[row, before - length : before + count] = 1
        cache = _filled(pasts, before)
        output = self._decoder(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=True,
            **{self._cache_name: cache},
        )
        logits = self._model.score(output.last_hidden_state)
        for row, span in enumerate(spans):
            span.computed = _row(cache, logits, row, before, len(span.tokens))
            self._run += len(span.tokens)
        self._forwards += 1


def _runnable(ends: Iterable[Span]) -> list[Span]:
    """The first span of each path that has not been run; one that several paths share comes once."""
    first = (next((span for span in end.path if span.computed is None), None) for end in ends)
    return list(dict.fromkeys(span for span in first if span is not None))


def _filled(pasts: Sequence[Sequence[Span]], before: int) -> DynamicCache:
    """A cache of copies: a row for each path, aligned at its end."""
    cache = DynamicCache()
    layers = next((len(_keys_values(past[0])) for past in pasts if past), 0)
    for layer in range(layers):
        rows = [[_keys_values(span)[layer] for span in past] for past in pasts]
        keys = _aligned([[keys for keys, _ in row] for row in rows], before)
        values = _aligned([[values for _, values in row] for row in rows], before)
        cache.update(keys, values, layer)
    return cache


def _aligned(rows: Sequence[Sequence[torch.Tensor]], before: int) -> torch.Tensor:
    """Join each row's parts, (heads, tokens, width) each, and pad on the left to (rows, heads, before, width)."""
    some = next(row[0] for row in rows if row)
    joined = some.new_zeros((len(rows), some.shape[0], before, some.shape[2]))
    for row, parts in enumerate(rows):
        if parts:
            whole = torch.cat(list(parts), dim=1)
            joined[row, :, before - whole.shape[1] :] = whole
    return joined


def _keys_values(span: Span) -> list[tuple[torch.Tensor, torch.Tensor]]:
    assert span.computed is not None
    return span.computed.keys_values


def _row(cache: DynamicCache, logits: torch.Tensor, row: int, before: int, count: int) -> Computed:
    new = slice(before, before + count)
    return Computed(
        [(layer.keys[row, :, new].clone(), layer.values[row, :, new].clone()) for layer in cache.layers],
        logits[row, :count].clone(),
    )


def _load(path: Path, options: RewardOptions) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers has no common error type for what it can't read
        raise CorruptFile(str(path), f"the config: {error}") from error
    names = config.architectures or []
    if not any(name.endswith(_KINDS) for name in names):
        raise UnsupportedModel(f"{path} holds {', '.join(names) or 'no named architecture'}, not a …{_KINDS}")
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if kinds - _ATTENTION:
        raise UnsupportedModel(f"{path} has layers of {', '.join(sorted(kinds - _ATTENTION))}, not of plain attention")
    dtype = getattr(torch, options.dtype) if options.dtype is not None else None
    if dtype is None:
        dtype = torch.float32 if options.device == "cpu" else "auto"
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:
        raise CorruptFile(str(path), f"the weights: {error}") from error
    if loading["missing_keys"]:
        raise MissingTensor(min(loading["missing_keys"]), str(path))
    return model.eval().to(options.device)


def _cache_name(model: Any, decoder: Any) -> str:
    """What the decoder calls its cache; it has changed between versions of transformers.

    Raises:
        UnsupportedModel: it is no decoder that goes on from a cache at given positions, with a head for each token.
    """
    known = inspect.signature(decoder.forward).parameters
    name = next((name for name in ("cache", "past_key_values") if name in known), None)
    if name is None or "position_ids" not in known or not isinstance(getattr(model, "score", None), torch.nn.Module):
        raise UnsupportedModel(f"{type(model).__name__} can't be run piece by piece: it is no decoder with positions")
    return name


def _check_labels(positive: int | None, labels: int) -> None:
    if positive is None and labels != 1:
        raise InvalidArgument("positive", positive, f"must name one of the model's labels, 0 to {labels - 1}")
    if positive is not None and (labels == 1 or positive >= labels):
        limit = "must be None: the model has one label" if labels == 1 else f"must be 0 to {labels - 1}"
        raise InvalidArgument("positive", positive, limit)
