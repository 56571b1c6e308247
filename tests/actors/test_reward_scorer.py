"""Scores of texts whose beginnings were scored before, against plain transformers on the whole text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.reward_options import RewardOptions
from actors.reward_scorer import RewardScorer
from dendrite.errors import CorruptFile, InvalidArgument, MissingTensor, ModelError, ModelNotFound, UnsupportedModel
from tests.actors.reward_folders import Whole, write_classifier, write_merging_tokenizer
from tests.tiny_model import write_tiny_model

PROMPT = "Numbers: 3 7 8 25. Target: 92.\n"
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def whole(classifier: Path) -> Whole:
    return Whole(classifier)


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_classifier(tmp_path_factory.mktemp("merging"))
    write_merging_tokenizer(folder)
    return folder


def score(scorer: RewardScorer, texts: Sequence[str]) -> list[float | None]:
    return scorer.score([scorer.encode(text) for text in texts])


def check_equal(scorer: RewardScorer, whole: Whole, texts: Sequence[str]) -> None:
    assert score(scorer, texts) == pytest.approx([whole.score(text) for text in texts], abs=1e-4)


def distinct(whole: Whole, texts: Sequence[str]) -> int:
    """Tokens that there are to compute if none is computed twice."""
    paths = [whole.tokens(text) for text in texts]
    return len({tuple(path[: length + 1]) for path in paths for length in range(len(path))})


TREES = st.lists(st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=6)
"""Batches of a search: each is of the steps that may follow some text of those before."""


def grown(batches: list[list[str]], picks: Sequence[int]) -> list[list[str]]:
    """The texts of each batch, below one that was there already."""
    known, texts = [PROMPT], []
    for steps, pick in zip(batches, picks, strict=False):
        parent = known[pick % len(known)]
        texts.append([parent + step for step in steps])
        known.extend(texts[-1])
    return texts


@settings(max_examples=15)
@given(TREES, st.lists(st.integers(0, 100), min_size=6, max_size=6))
def test_a_tree_of_texts_scores_as_whole_texts_do_and_no_token_is_run_twice(
    classifier: Path, whole: Whole, batches: list[list[str]], picks: list[int]
) -> None:
    scorer = RewardScorer(str(classifier), RewardOptions())
    texts = grown(batches, picks)
    for batch in texts:
        check_equal(scorer, whole, batch)
    every = [text for batch in texts for text in batch]
    stats = scorer.stats
    assert stats.texts == len(every)
    assert stats.tokens_computed == stats.tokens_cached == distinct(whole, every)
    assert stats.tokens_computed + stats.tokens_reused == sum(len(whole.tokens(text)) for text in every)


@settings(max_examples=10)
@given(TREES, st.lists(st.integers(0, 100), min_size=6, max_size=6), st.sampled_from([0, 20, 40]))
def test_a_small_cache_costs_time_and_nothing_else(
    classifier: Path, whole: Whole, batches: list[list[str]], picks: list[int], limit: int
) -> None:
    scorer = RewardScorer(str(classifier), RewardOptions(cache_tokens=limit))
    for batch in grown(batches, picks):
        check_equal(scorer, whole, batch)
        assert scorer.stats.tokens_cached <= limit


@settings(max_examples=15)
@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=3), min_size=1, max_size=5))
def test_tokens_that_merge_across_the_end_of_a_text_are_those_of_the_longer_text(
    merging: Path, batches: list[list[str]]
) -> None:
    scorer, whole = RewardScorer(str(merging), RewardOptions()), Whole(merging)
    for batch in grown(batches, [-1] * len(batches)):
        check_equal(scorer, whole, [text.removeprefix(PROMPT) for text in batch])


def test_the_merging_tokenizer_does_merge(merging: Path) -> None:
    whole = Whole(merging)
    assert whole.tokens("ab")[: len(whole.tokens("a"))] != whole.tokens("a")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_family_scores_as_whole_texts_do(tmp_path: Path, family: str) -> None:
    """A sliding window, and learnt positions, go by places in the text, not by those in a padded batch."""
    folder = write_classifier(tmp_path, family=family, **FAMILIES[family])
    scorer, whole = RewardScorer(str(folder), RewardOptions()), Whole(folder)
    check_equal(scorer, whole, [PROMPT])
    check_equal(scorer, whole, [PROMPT + "a\n", PROMPT + "a\nbbbb\n", "other", PROMPT[:5], PROMPT])
    check_equal(scorer, whole, [PROMPT + "a\nbbbb\n" + "c" * 30, PROMPT + "a\nbd", "others"])


def test_the_value_of_several_labels_is_the_probability_of_one(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, labels=3)
    for positive in (0, 2):
        scorer = RewardScorer(str(folder), RewardOptions(positive=positive))
        check_equal(scorer, Whole(folder, positive), [PROMPT, PROMPT + "a"])


def test_padding_at_the_end_of_a_text_is_not_what_the_head_reads(classifier: Path, whole: Whole) -> None:
    padding = whole.tokenizer.decode([257])
    assert whole.tokens("ab" + padding) == [*whole.tokens("ab"), 257]
    scorer = RewardScorer(str(classifier), RewardOptions())
    check_equal(scorer, whole, ["ab" + padding, "ab" + padding + "c", padding])


def test_a_text_longer_than_the_context_has_no_value(classifier: Path, whole: Whole) -> None:
    scorer = RewardScorer(str(classifier), RewardOptions())
    assert score(scorer, ["a" * 257, "ab"]) == [None, pytest.approx(whole.score("ab"), abs=1e-4)]
    check_equal(scorer, whole, ["a" * 256])


def test_a_text_without_tokens_is_refused(classifier: Path) -> None:
    with pytest.raises(InvalidArgument, match="text=''"):
        RewardScorer(str(classifier), RewardOptions()).encode("")


def test_a_failure_leaves_no_half_made_span(classifier: Path, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = RewardScorer(str(classifier), RewardOptions())
    check_equal(scorer, whole, [PROMPT])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", _fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            score(scorer, [PROMPT + "a\n"])
    assert scorer.stats.tokens_cached == 0
    check_equal(scorer, whole, [PROMPT + "a\n", PROMPT])


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("out of memory")


def test_folders_that_hold_no_usable_classifier_are_told_apart(tmp_path: Path, classifier: Path) -> None:
    with pytest.raises(ModelNotFound):
        RewardScorer(str(tmp_path / "nowhere"), RewardOptions())
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM, not a …ForSequenceClassification"):
        RewardScorer(str(write_tiny_model(tmp_path / "causal")), RewardOptions())
    bare = write_classifier(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        RewardScorer(str(bare), RewardOptions())


def test_weights_and_configs_that_fall_short_are_named(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "headless")
    config = json.loads((folder / "config.json").read_text())
    _drop(folder / "model.safetensors", "score.weight")
    with pytest.raises(MissingTensor, match=r"score\.weight"):
        RewardScorer(str(folder), RewardOptions())
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CorruptFile, match="weights"):
        RewardScorer(str(folder), RewardOptions())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(CorruptFile, match="config"):
        RewardScorer(str(folder), RewardOptions())


def _drop(path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    del weights[name]
    save_file(weights, path, metadata={"format": "pt"})


def test_models_that_cannot_go_on_from_a_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="BertForSequenceClassification can't be run piece by piece"):
        RewardScorer(str(write_classifier(tmp_path / "encoder", family="bert")), RewardOptions())
    kinds = ["full_attention", "chunked_attention"]
    folder = write_classifier(tmp_path / "chunked", family="qwen2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_types": kinds}))
    with pytest.raises(UnsupportedModel, match="chunked_attention"):
        RewardScorer(str(folder), RewardOptions())


@pytest.mark.parametrize(
    ("labels", "positive"), [(1, 0), (2, None), (2, 2)], ids=["one label", "which label", "no such label"]
)
def test_the_label_must_fit_the_model(tmp_path: Path, labels: int, positive: int | None) -> None:
    folder = write_classifier(tmp_path, labels=labels)
    with pytest.raises(InvalidArgument, match="positive="):
        RewardScorer(str(folder), RewardOptions(positive=positive))
