"""Fork one prompt into branches that are all valid JSON, and branch again from inside one of them.

The model is a small one that has never seen JSON: what it writes means nothing, but every document that it completes is
valid under the schema. Run it with `python examples/json_branches.py`.
"""

from __future__ import annotations

import json

import jsonschema

from dendrite import Engine, Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "operation": {"enum": ["add", "subtract", "multiply"]},
        "left": {"type": "integer", "minimum": 0, "maximum": 99},
        "right": {"type": "integer", "minimum": 0, "maximum": 99},
        "checked": {"type": "boolean"},
    },
    "required": ["operation", "left", "right", "checked"],
    "additionalProperties": False,
}


def main() -> list[str]:
    """Print the documents; return them all."""
    grammar = Grammar(json_schema=SCHEMA, white_space=False)
    engine = Engine.from_pretrained("countdown")
    root = engine.prefill("Numbers: 3 7 8 25. Target: 92.\n")

    branches = root.fork(6)
    engine.decode(branches, max_tokens=100, temperature=1.5, grammar=grammar)
    documents = [branch.text for branch in branches]
    for branch in branches:
        jsonschema.validate(json.loads(branch.text), SCHEMA)
        print(f"{sum(branch.logprobs):7.2f}  {branch.text}")

    start = len('{"operation":')  # one token a byte
    variants = branches[0].at(start).fork(3)  # the grammar goes on from there too
    engine.decode(variants, max_tokens=100, temperature=1.5, grammar=grammar)
    print("other ways to go on from the first branch's first value:")
    for variant in variants:
        document = branches[0].text[:start] + variant.text
        documents.append(document)
        jsonschema.validate(json.loads(document), SCHEMA)
        print(f"         {document}")

    stats = engine.stats()
    written = stats.decode_tokens + stats.forced_tokens
    print(f"all valid; {stats.forced_tokens} of {written} tokens were forced")
    root.release(subtree=True)
    engine.close()
    return documents


if __name__ == "__main__":
    main()
