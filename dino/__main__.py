"""`python -m dino`: see `dino.commands`."""

import sys

from dino.commands import main

if __name__ == "__main__":
    sys.exit(main())
