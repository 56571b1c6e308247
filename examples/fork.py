"""Fork one prompt into eight branches, decode them as one batch, and branch again from inside the best.

Run it with `python examples/fork.py`.
"""

from __future__ import annotations

from dendrite import Engine


def main() -> None:
    engine = Engine.from_pretrained("countdown")
    root = engine.prefill("Numbers: 3 7 8 25. Target: 92.\n")

    branches = root.fork(8)  # copies nothing: the branches read the prompt's KV
    engine.decode(branches, max_tokens=32, stop="\n", temperature=1.0)
    for branch in branches:
        print(f"{sum(branch.logprobs):7.2f}  {branch.text.rstrip()}")

    best = max(branches, key=lambda branch: sum(branch.logprobs))
    variants = best.at(1).fork(4)  # keep its first token only; nothing is prefilled again
    engine.decode(variants, max_tokens=32, stop="\n", temperature=1.0)
    print("other ways to go on from the best branch's first token:")
    for variant in variants:
        print(f"         …{variant.text.rstrip()}")

    root.release(subtree=True)
    engine.close()


if __name__ == "__main__":
    main()
