"""The tokenizer of a model folder: text, chat, end of sequence, streaming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dendrite.errors import CorruptFile, InvalidArgument, ModelError
from dendrite.model.detokenizer import Detokenizer
from dendrite.model.tokenizer import Tokenizer
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who?') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tokenizer(folder: Path, chat: bool = True, bos: bool = False) -> None:
    """A tokenizer of single bytes, so that characters beyond ASCII take several tokens."""
    alphabet = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = RawTokenizer(models.BPE(vocab=alphabet, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    if bos:
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = TEMPLATE if chat else None
    wrapped.save_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_class_is_what_transformers_would_choose(model_type: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    chosen = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    assert type(Tokenizer.from_folder(tmp_path).backend) is type(chosen)


def test_a_plain_tokenizer_is_loaded_without_every_models_configuration(tmp_path: Path) -> None:
    """Each process with a model loads one, and that takes seconds."""
    write_tiny_model(tmp_path)
    code = "import sys; from dendrite.model.tokenizer import Tokenizer; Tokenizer.from_folder(sys.argv[1]).encode('a')"
    code += "; assert 'transformers.models.auto.tokenization_auto' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    text = "25*4=100 (1 100)\n  naïve 漢字 🌳"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 258


def test_special_tokens_have_no_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), 257]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a</s>"


def test_the_begin_token_is_added_where_the_model_uses_one(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, bos=True)
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("a")[0] == 256
    assert len(tokenizer.encode("a", add_special_tokens=False)) == 1


def test_chats_are_rendered_by_the_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(messages) == "<user>hi</s><assistant>"
    assert tokenizer.render_chat(messages, add_generation_prompt=False) == "<user>hi</s>"
    assert 257 in tokenizer.encode_chat(messages)
    assert tokenizer.decode(tokenizer.encode_chat(messages), skip_special_tokens=False) == "<user>hi</s><assistant>"


def test_messages_that_the_template_refuses_are_an_invalid_argument(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgument, match=r"messages.*who\?"):
        tokenizer.render_chat([{"role": "nobody", "content": ""}])


def test_without_a_template_chat_says_so(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, chat=False)
    with pytest.raises(ModelError, match="no chat template"):
        Tokenizer.from_folder(tmp_path).render_chat([{"role": "user", "content": "hi"}])


def test_without_a_tokenizer_text_says_so_and_eos_still_works(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert not tokenizer.available
    assert tokenizer.eos_ids == {7}
    for call in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1]), lambda: tokenizer.stream()):
        with pytest.raises(ModelError, match="no tokenizer"):
            call()


def test_broken_tokenizer_files_are_corrupt(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptFile, match="tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [([3, 4], 5, {3, 4}), (3, 5, {3}), (None, 5, {5}), (None, None, {257}), (..., ..., {257})],
)
def test_eos_is_the_generation_configs_else_the_configs_else_the_tokenizers(
    tmp_path: Path, generation: object, config: object, expected: set[int]
) -> None:
    save_tokenizer(tmp_path)
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not ...:
            (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    assert Tokenizer.from_folder(tmp_path).eos_ids == expected


def test_a_bad_eos_id_is_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(CorruptFile, match="eos_token_id"):
        Tokenizer.from_folder(tmp_path)


@given(st.text(max_size=20))
def test_streamed_pieces_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text


def test_a_character_appears_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream(tokenizer.encode("so: "))
    assert [stream.push(token) for token in tokenizer.encode("a🌳b")] == ["a", "", "", "", "🌳", "b"]


def test_an_incomplete_character_is_flushed_as_a_replacement(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert [stream.push(token) for token in tokenizer.encode("漢")[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_bytes_that_never_become_text_are_not_held_for_long(tokenizer: Tokenizer) -> None:
    stray = tokenizer.encode("漢")[1]
    stream = tokenizer.stream()
    pieces = [stream.push(stray) for _ in range(12)]
    assert "".join(pieces) == "\ufffd" * 12
    assert stream.push(tokenizer.encode("a")[0]) == "a"


@given(st.text(alphabet="ab 漢🌳é\n", max_size=12), st.lists(st.integers(1, 5), min_size=1, max_size=20))
def test_spans_of_tokens_stream_the_text_that_single_ones_do(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    tokens = tokenizer.encode(text)
    stream, pieces, at = tokenizer.stream(), [], 0
    for size in [*sizes, len(tokens)]:
        pieces.append(stream.extend(tokens[at : at + size]))
        at += size
    assert "".join(pieces) + stream.flush() == text


def test_special_tokens_stream_no_text(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in [257] * 6 + tokenizer.encode("ab")]
    assert "".join(pieces) == "ab"


def test_a_fork_continues_alone(tokenizer: Tokenizer) -> None:
    first, second, third = tokenizer.encode("漢")
    stream = tokenizer.stream()
    stream.push(first)
    fork = stream.fork()
    assert (fork.push(second), fork.push(third)) == ("", "漢")
    assert stream.push(tokenizer.encode("a")[0]) == "\ufffda"


def test_leading_spaces_depend_on_the_context() -> None:
    def decode(tokens: object) -> str:
        # Like a SentencePiece tokenizer: every word brings a space, and the first one of a text is dropped.
        return " ".join(f"w{token}" for token in list(tokens))  # type: ignore[call-overload]

    assert Detokenizer(decode).push(1) == "w1"
    assert Detokenizer(decode, [5]).push(1) == " w1"
