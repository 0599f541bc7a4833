"""Run every step of both chapters, on one thread: `python -m dino_kernels.tutorial`, three minutes."""

from dino_kernels.tutorial.attention import run as attention
from dino_kernels.tutorial.matching import run as matching

if __name__ == "__main__":
    for chapter in (attention, matching):
        for module in dict.fromkeys(step.module for step in chapter.STEPS.values()):
            chapter.main(module)
