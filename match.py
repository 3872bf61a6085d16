"""Find the points of one image in another: see sd4match/command.py, or --help."""

import sys

from sd4match.command import main

if __name__ == "__main__":
    sys.exit(main())
