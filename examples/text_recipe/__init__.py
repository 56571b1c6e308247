"""The parts of `examples/train_text.py`: the text, its tokens, training."""
