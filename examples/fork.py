"""Fork in ten lines: eight branches of one prompt as one batch, then more of them from inside the best.

Run it with `python examples/fork.py`.
"""

from __future__ import annotations

from dendrite import Engine


def main() -> list[str]:
    """Print the branches; return the texts of the last ones, from the prompt's end on."""
    with Engine.from_pretrained("countdown") as engine:
        root = engine.prefill("Numbers: 3 7 8 25. Target: 92.\n")
        branches = root.fork(8)  # copies nothing: the branches read the prompt's KV
        engine.decode(branches, max_tokens=32, stop="\n", temperature=1.0)  # one batch
        best = max(branches, key=lambda branch: sum(branch.logprobs))
        variants = best.at(1).fork(4)  # keep its first token only; nothing is prefilled again
        engine.decode(variants, max_tokens=32, stop="\n", temperature=1.0)
        texts = [best.text[:1] + variant.text for variant in variants]  # one token a byte

        for branch in branches:
            print(f"{sum(branch.logprobs):7.2f}  {branch.text.rstrip()}{'  <- the best' if branch is best else ''}")
        print("other ways to go on from the best branch's first token:")
        for text in texts:
            print(f"         {text.rstrip()}")
        root.release(subtree=True)
        return texts


if __name__ == "__main__":
    main()
