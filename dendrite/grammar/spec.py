"""What a grammar is before anything is compiled: a text that hashes, pickles and travels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

Kind: TypeAlias = Literal["json_schema", "regex", "lark"]


class Grammar(BaseModel):
    """The language that a generation is held to. Give exactly one of the three.

    Two grammars are the same if their texts are: the order of a schema's properties is the order in which a document
    has them, so it counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_schema: str | None = None
    """A JSON schema: a mapping, True, or its JSON text. A mapping is kept as its text."""
    regex: str | None = None
    """A regular expression of Rust's dialect, without look-around, that the whole text must match."""
    lark: str | None = None
    """A Lark grammar as llguidance reads it, from the rule `start`."""
    white_space: bool = True
    """Whether a document under a JSON schema may have white space between its parts: a space, or a new line with its
    indentation. Without, most of its punctuation is forced. The schema's own `x-guidance` may say more."""

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        if value is None:
            return None
        try:
            schema = json.loads(value) if isinstance(value, str) else value
            if schema is True:
                schema = {}
            if not isinstance(schema, Mapping):
                raise ValueError("must be a JSON schema that something is valid under: an object, or true")
            return json.dumps(dict(schema), ensure_ascii=False, allow_nan=False)
        except (TypeError, RecursionError) as error:
            raise ValueError(f"must be a JSON schema: {error}") from error

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(text is not None for text in (self.json_schema, self.regex, self.lark)) != 1:
            raise ValueError("exactly one of json_schema, regex and lark")
        if self.json_schema is None and not self.white_space:
            raise ValueError("white_space=False goes with a JSON schema")
        return self

    @property
    def kind(self) -> Kind:
        """Which of the three it is."""
        if self.json_schema is not None:
            return "json_schema"
        return "regex" if self.regex is not None else "lark"

    @property
    def source(self) -> str:
        """Its text."""
        return next(text for text in (self.json_schema, self.regex, self.lark) if text is not None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that it says, in hexadecimal: the same on every machine."""
        text = f"{self.kind}\0{self.white_space}\0{self.source}"
        return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
