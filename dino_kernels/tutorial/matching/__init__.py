"""Hungarian matching in five steps; `run.STEPS` lists them."""
