"""Frozen settings: how an engine is built, and how a generation is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dendrite.errors import InvalidArgument
from dendrite.grammar.limits import GrammarLimits
from dendrite.grammar.spec import Grammar
from dendrite.quant.scheme import QuantizeMode

MAX_SEED = 2**63 - 1


_Settings = TypeVar("_Settings", bound=BaseModel)


def checked(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """Build settings of `kind` from `values`.

    Raises:
        InvalidArgument: the first field that is unknown or out of range, with its value and limit.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or kind.__name__
        raise InvalidArgument(field, first["input"], first["msg"]) from None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineConfig(_Frozen):
    """How an `Engine` is built. Nothing here changes after construction."""

    page_size: Literal[8, 16, 32] = 16
    """Tokens per KV page."""
    kv_tokens: Annotated[int, Field(ge=64)] | None = None
    """Capacity of the KV pool in tokens, rounded up to whole pages. None is 65,536 on the CPU; on CUDA it is what
    `memory_fraction` leaves after the weights."""
    memory_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Share of the GPU's memory that weights and KV may fill; what the steps work in comes from the rest."""
    max_batch_tokens: Annotated[int, Field(ge=16)] = 2_048
    """Most tokens one step may run: decoding nodes first, the rest of the room goes to prefill chunks."""
    max_running: Annotated[int, Field(ge=1)] = 256
    """Most nodes that may decode in one step."""
    max_burst: Annotated[int, Field(ge=1, le=256)] = 32
    """Most tokens that a node generates on the GPU before the host looks at them. The CPU looks at each one."""
    cuda_graphs: bool = True
    """Whether decode steps on CUDA are replayed as graphs; without, each kernel is launched by the host."""
    prefix_cache: bool = True
    """Whether released prompts stay cached until their pages are needed, and new prompts look for them."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """`auto` is CUDA where torch sees a GPU, else the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of weights, activations and KV; None is float32 on the CPU and the checkpoint's own type on CUDA."""
    quantize: QuantizeMode | None = None
    """Products with 8-bit weights: `fp8` and `mxfp8` round activations too, those of weights only do not. None leaves
    the weights as the checkpoint has them, which may be FP8 or MXFP8 already."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Type of keys and values: `auto` is that of the weights' products; `fp8` takes half the memory of 16 bits."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes of one machine among which each layer's heads and MLP are divided, on CUDA with a GPU each. It must
    divide the model's attention heads, its key-value heads and its `intermediate_size`. Above 1, decoding on CUDA is a
    step a token, without graphs."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Base of every sampling key that no `SamplingParams.seed` overrides."""
    grammar_cache: Annotated[int, Field(ge=1)] = 64
    """Compiled grammars that are kept, those used last."""
    grammar_limits: GrammarLimits = GrammarLimits()
    """How large a grammar may be, and how much work each of its steps."""
    debug_checks: bool = False
    """Check the KV invariants after every step (slow; meant for tests)."""

    @model_validator(mode="after")
    def _decodes_fit_a_step(self) -> Self:
        if self.max_running > self.max_batch_tokens:
            raise ValueError(f"max_running must not exceed max_batch_tokens={self.max_batch_tokens}")
        return self


class Continuation(_Frozen):
    """A continuation that was drawn before: its tokens and their natural-log probabilities at temperature 1."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.tokens) != len(self.logprobs):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.logprobs)} logprobs; each needs its own")
        return self


class SamplingParams(_Frozen):
    """How tokens are chosen and when a generation ends."""

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    """Most tokens to generate on each node."""
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = 1.0
    """0 is greedy: the most likely token, the smallest id among equals."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches p."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Drop tokens less likely than min_p times the most likely one."""
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Divide (positive) or multiply (negative) the logits of tokens on the path by this (CTRL, section 4.1)."""
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logits of tokens generated on the path at least once."""
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    """Subtracted once for each time a token was generated on the path."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; the token that completes one is kept."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the generation; the token is kept."""
    ignore_eos: bool = False
    """Whether to go on after the model's end-of-sequence token."""
    logit_bias: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100.0, le=100.0)]], ...] = ()
    """Added to the logits of these token ids before temperature and filters; a mapping is taken too."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """Report so many of the most likely tokens at each position, with their log-probabilities."""
    without: tuple[Continuation, ...] = ()
    """Continuations not to draw again: see `dendrite.engine.without`."""
    grammar: Grammar | None = None
    """What the text must follow. The sequence can only end where the grammar lets it, and does where nothing fits."""
    grammar_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens at the end of the path that belong to the grammar's document. None: those that were generated under the
    same grammar, if nothing else came after them."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Overrides the key (tree, node) of the sampling noise by (seed, index of the branch in its call)."""

    @model_validator(mode="after")
    def _tokens_of_a_grammar(self) -> Self:
        if self.grammar_tokens is not None and self.grammar is None:
            raise ValueError("grammar_tokens goes with a grammar")
        return self

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @field_validator("stop")
    @classmethod
    def _stop_not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text for text in value):
            raise ValueError("a stop text must not be empty")
        return value
