"""The paper's claims, measured on small models: `python -m benchmarks.claims`; README.md explains and shows them."""
