"""Match points between two photos in the browser: see sd4match/demo.py, or --help."""

import sys

from sd4match.demo import main

if __name__ == "__main__":
    sys.exit(main())
