#!/bin/sh
# Train SD4Match-Class on SPair-71k. Extra arguments are KEY VALUE settings or flags of train.py.
. "$(dirname "$0")/../launch.sh"
train config/spair/sd4match_class.yaml "$@"
