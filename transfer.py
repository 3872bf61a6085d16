"""Carry keypoints of labelled images to others: see sd4match/label_command.py, or --help."""

import sys

from sd4match.label_command import main

if __name__ == "__main__":
    sys.exit(main())
