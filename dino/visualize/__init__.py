"""How a model works."""
