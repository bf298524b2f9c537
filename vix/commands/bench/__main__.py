"""`python -m vix.commands.bench`: the command without `main.py`, and so without Lightning, W&B and jsonargparse."""

import sys

from vix.commands.bench import main

if __name__ == "__main__":
    sys.exit(main())
