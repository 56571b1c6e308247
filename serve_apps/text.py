"""The text side of a model at the HTTP layer: prompts to token ids, tokens to strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from dendrite.errors import InvalidArgument, ModelError
from dendrite.model.config import ModelConfig
from dendrite.model.detokenizer import Detokenizer
from dendrite.model.folder import resolve
from dendrite.model.tokenizer import Tokenizer

_CACHED_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token alone: its text, and its bytes where that is whole characters."""

    text: str
    bytes: list[int] | None


class TextCodec:
    """A model's tokenizer and sizes. Has no weights, and needs no torch."""

    def __init__(self, name: str, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self.name, self.max_context, self.vocabulary = name, config.max_context, config.vocab_size
        self._tokenizer = tokenizer
        self.token_text = lru_cache(_CACHED_TOKENS)(self._token_text)
        """The text of one token."""

    @classmethod
    def load(cls, model: str | Path) -> Self:
        """Read what the folder of a model says; `model` is a packaged model's name or a path.

        Raises:
            ModelError: there is no such folder, it cannot be read, or it has no tokenizer.
        """
        folder = resolve(model)
        tokenizer = Tokenizer.from_folder(folder)
        if not tokenizer.available:
            raise ModelError(f"the model folder {folder} has no tokenizer, which text over HTTP needs")
        return cls(folder.name, tokenizer, ModelConfig.from_folder(folder))

    def prompt(self, prompt: str | Sequence[int], field: str) -> list[int]:
        """Token ids of a prompt; `field` names it in errors.

        Raises:
            InvalidArgument: it is empty, or holds an id outside the vocabulary.
        """
        return self._checked(self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt, field)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation.

        A model without a chat template takes the contents one after the other, a line each: the packaged model reads
        a problem that way.
        """
        if self._tokenizer.backend.chat_template:
            return self._tokenizer.encode_chat(messages)
        return self.prompt("".join(_line(message["content"]) for message in messages), "messages")

    def continuation(self, given: str | Sequence[int], field: str) -> list[int]:
        """Token ids of what stands in the middle of a sequence; `field` names it in errors.

        Raises:
            InvalidArgument: it is empty, or holds an id outside the vocabulary.
        """
        if isinstance(given, str):
            given = self._tokenizer.encode(given, add_special_tokens=False)
        return self._checked(given, field)

    def stream(self) -> Detokenizer:
        """Text of tokens as they come."""
        return self._tokenizer.stream()

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a whole sequence."""
        return self._tokenizer.decode(tokens)

    def _checked(self, tokens: Sequence[int], field: str) -> list[int]:
        if not tokens:
            raise InvalidArgument(field, [], "at least one token")
        if max(tokens) >= self.vocabulary:
            raise InvalidArgument(field, max(tokens), f"token ids from 0 to {self.vocabulary - 1}")
        return list(tokens)

    def _token_text(self, token: int) -> TokenText:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return TokenText(text, None if "\ufffd" in text else list(text.encode()))


def _line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"
