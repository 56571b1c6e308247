"""Text to token ids and back, the chat template, and which ids end a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dendrite.errors import CorruptFile, InvalidArgument, ModelError
from dendrite.model.config import CONFIG_FILE, read_json
from dendrite.model.detokenizer import Detokenizer

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", _TOKENIZER_CONFIG, "vocab.json", "vocab.txt")
_GENERATION_FILE = "generation_config.json"


class Tokenizer:
    """A model folder's tokenizer. A folder without one still has `eos_ids`; all else raises `ModelError`."""

    def __init__(self, inner: Any | None, eos_ids: frozenset[int], folder: str) -> None:
        """Wrap a transformers tokenizer; see `from_folder`."""
        self._inner, self._fast = inner, _fast(inner)
        self._folder = folder
        self.eos_ids = eos_ids

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Load what the folder holds; no file is fetched from elsewhere.

        The end-of-sequence ids are those of `generation_config.json`, else of `config.json`, else the
        tokenizer's.

        Raises:
            CorruptFile: there are tokenizer files, but they cannot be read.
        """
        folder = Path(folder)
        inner = _load_inner(folder) if any((folder / name).exists() for name in _TOKENIZER_FILES) else None
        return cls(inner, _eos_ids(folder, inner), str(folder))

    @property
    def available(self) -> bool:
        """Whether the folder has a tokenizer at all."""
        return self._inner is not None

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's embedding may be padded beyond it."""
        return len(self._need())

    @property
    def backend(self) -> Any:
        """The transformers tokenizer underneath, for what this class does not offer (grammars)."""
        return self._need()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the model's begin-of-sequence token where it uses one."""
        return list(self._need().encode(text, add_special_tokens=add_special_tokens))

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are not valid UTF-8 become U+FFFD."""
        text: str
        if self._fast is not None:
            text = self._fast.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        else:
            text = self._need().decode(
                list(tokens), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        return text

    def stream(self, context: Sequence[int] = ()) -> Detokenizer:
        """Text of tokens that come one by one after `context`; special tokens have none."""
        self._need()
        return Detokenizer(self.decode, context)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Text of a conversation, special tokens included: encode it with add_special_tokens=False.

        Args:
            messages: each with at least `role` and `content`, in order.
            add_generation_prompt: end with what starts the assistant's turn.
            **variables: further variables of the template, such as `tools` or `enable_thinking`.

        Raises:
            ModelError: the folder has no chat template.
            InvalidArgument: the template refuses the messages.
        """
        inner = self._need()
        if not inner.chat_template:
            raise ModelError(f"the tokenizer in {self._folder} has no chat template; pass a plain prompt")
        try:
            text: str = inner.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except Exception as error:
            # Templates are programs of the model's author: they raise what Jinja or their own checks raise.
            raise InvalidArgument("messages", list(messages), f"the chat template refused them: {error}") from error
        return text

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of a conversation; see `render_chat`."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def _need(self) -> Any:
        if self._inner is None:
            raise ModelError(f"the model folder {self._folder} has no tokenizer; pass token ids instead of text")
        return self._inner


def _fast(inner: Any | None) -> Any | None:
    """The tokenizer that `inner` only passes texts on from; None where it does more. Asked itself it takes a third."""
    if inner is None:
        return None
    from transformers import PreTrainedTokenizerFast as Plain

    kind = type(inner)
    plain = issubclass(kind, Plain) and kind.decode is Plain.decode and kind._decode is Plain._decode
    return inner.backend_tokenizer if plain else None


def _load_inner(folder: Path) -> Any:
    # Deferred: transformers takes seconds to import, and a model used with token ids alone never needs it.
    import transformers

    # AutoTokenizer imports every model's configuration to find the class: seconds, for each process that has a model.
    kind = transformers.PreTrainedTokenizerFast if _names_the_plain_class(folder) else transformers.AutoTokenizer
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        # transformers and its Rust backend have no common error type for malformed files.
        raise CorruptFile(str(folder), f"the tokenizer files: {error}") from error


def _names_the_plain_class(folder: Path) -> bool:
    """Whether the class that only reads `tokenizer.json` is named, and is what AutoTokenizer would take.

    For some architectures it takes another one than named; for Llama's it does not.
    """
    if not all((folder / name).exists() for name in ("tokenizer.json", _TOKENIZER_CONFIG, CONFIG_FILE)):
        return False
    settings = read_json(folder / _TOKENIZER_CONFIG)
    named = settings.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return named and "auto_map" not in settings and read_json(folder / CONFIG_FILE).get("model_type") == "llama"


def _eos_ids(folder: Path, inner: Any | None) -> frozenset[int]:
    for name in (_GENERATION_FILE, CONFIG_FILE):
        path = folder / name
        if not path.exists():
            continue
        found = read_json(path).get("eos_token_id")
        if found is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(isinstance(token, int) for token in ids):
            raise CorruptFile(str(path), "field 'eos_token_id' must be an integer or a list of them")
        return frozenset(ids)
    if inner is not None and inner.eos_token_id is not None:
        return frozenset((inner.eos_token_id,))
    return frozenset()
