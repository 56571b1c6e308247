"""The parts of `examples/train_countdown.py`: data, training, sampling, value head, report."""
