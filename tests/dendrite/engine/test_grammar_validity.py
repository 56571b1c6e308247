"""Forked branches under a schema: what has ended is valid, and what hasn't is the beginning of something that is.

At a temperature of 1.5, with the packaged model, which has never seen JSON, and with one of random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from jsonschema.validators import validator_for

import dendrite
from dendrite.grammar import Grammar
from dendrite.grammar.compiler import CompiledGrammar, GrammarCompiler, wrapped
from dendrite.grammar.matcher import Matcher
from dendrite.kv.node import Node
from tests.dendrite.grammar.schemas import SCHEMAS
from tests.tiny_model import write_tiny_model

AT_ONCE = 10
"""Schemas whose branches share a batch: 250 branches, which the engine runs at once."""
SPACED = ("record", "recursive", "array", "pattern", "nested_arrays", "format_date", "enum")


@pytest.fixture(scope="module", params=["packaged", "random"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dendrite.Engine]:
    model = "countdown" if request.param == "packaged" else write_tiny_model(tmp_path_factory.mktemp("random"))
    with dendrite.Engine.from_pretrained(model, device="cpu", kv_tokens=32_768, seed=11) as engine:
        yield engine
        assert engine.stats().pages_held == 0
        engine.check()


@pytest.fixture(scope="module")
def compiler(engine: dendrite.Engine) -> GrammarCompiler:
    assert engine.tokenizer is not None
    return GrammarCompiler(wrapped(engine.tokenizer, 264))


def decode(engine: dendrite.Engine, nodes: Mapping[str, Sequence[Node]], grammars: Mapping[str, Grammar]) -> None:
    """Generate below the nodes of all schemas together, each under its own."""
    for name, each in nodes.items():
        engine.submit(each, max_tokens=80, temperature=1.5, grammar=grammars[name])
    while engine.has_work:
        engine.step()


def check_branches(
    engine: dendrite.Engine,
    compiler: GrammarCompiler,
    names: Iterable[str],
    branches: int,
    *,
    white_space: bool = False,
) -> int:
    """Fork, decode, and fork again inside what has come; returns how many documents have ended."""
    grammars = {name: Grammar(json_schema=SCHEMAS[name], white_space=white_space) for name in names}
    root = engine.prefill("Numbers: 3 7 8 25. Target: 99.\n")
    first = {name: root.fork(branches - branches // 3) for name in grammars}
    decode(engine, first, grammars)
    second = {
        name: [kid.at(len(kid.tokens) // 2).fork()[0] for kid in kids[: branches // 3]] for name, kids in first.items()
    }
    decode(engine, second, grammars)
    ended = [
        check_node(node, node.path_tokens[root.length :], compiler.compile(grammar), SCHEMAS[name])
        for name, grammar in grammars.items()
        for node in [*first[name], *second[name]]
    ]
    assert len(ended) == len(grammars) * branches
    root.release(subtree=True)
    return sum(ended)


def check_node(node: Node, tokens: Sequence[int], compiled: CompiledGrammar, schema: Any) -> bool:
    """Check one branch, whose document so far is `tokens`; returns whether it has ended."""
    fresh = Matcher(compiled, 0)
    fresh.take(tokens)
    assert len(node.logprobs) == len(node.raw_logprobs) == len(node.tokens)
    assert all(raw <= logprob + 1e-4 for raw, logprob in zip(node.raw_logprobs, node.logprobs, strict=True))
    assert node.finish_reason in ("stop", "length")
    if node.finish_reason == "length":
        assert not fresh.finished
        return False
    assert fresh.accepting
    kind = validator_for(schema, default=validator_for({}))
    kind(schema).validate(json.loads(node.tree.detokenize(tokens)))
    return True


@pytest.mark.parametrize("start", range(0, 40, AT_ONCE))
def test_twenty_five_branches_of_every_schema_are_valid(
    engine: dendrite.Engine, compiler: GrammarCompiler, start: int
) -> None:
    ended = check_branches(engine, compiler, list(SCHEMAS)[start : start + AT_ONCE], 25)
    assert ended >= AT_ONCE * 25 // 5


def test_white_space_does_no_harm(engine: dendrite.Engine, compiler: GrammarCompiler) -> None:
    check_branches(engine, compiler, SPACED, 5, white_space=True)


def test_there_are_forty_schemas() -> None:
    assert len(SCHEMAS) == 40
