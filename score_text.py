"""Say which of some texts fits an image best: see sd4match/score_command.py, or --help."""

import sys

from sd4match.score_command import main

if __name__ == "__main__":
    sys.exit(main())
