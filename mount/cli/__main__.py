"""`python -m mount.cli`: the same as `nearline`."""

import sys

from mount.cli import main

if __name__ == "__main__":
    sys.exit(main())
