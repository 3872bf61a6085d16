#!/bin/sh
# Train SD4Match-Class on PF-Pascal. Extra arguments are KEY VALUE settings or flags of train.py.
. "$(dirname "$0")/../launch.sh"
train config/pfpascal/sd4match_class.yaml "$@"
