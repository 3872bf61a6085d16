#!/bin/sh
# Train SD4Match-Single on PF-Pascal. Extra arguments are KEY VALUE settings or flags of train.py.
. "$(dirname "$0")/../launch.sh"
train config/pfpascal/sd4match_single.yaml "$@"
