"""Run `benchmarks.tutorial.steps` as `python -m benchmarks.tutorial`."""

from benchmarks.tutorial.steps import main

main()
