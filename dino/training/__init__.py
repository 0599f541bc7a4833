"""The parts of a training run; `dino.training.train` puts them together."""
