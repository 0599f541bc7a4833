"""The parts of a training run; `dino.train` puts them together."""
