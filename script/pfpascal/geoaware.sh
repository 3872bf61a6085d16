#!/bin/sh
# Train GeoAware-SC's post-processor on PF-Pascal. Extra arguments are KEY VALUE settings or flags of train.py.
. "$(dirname "$0")/../launch.sh"
train config/pfpascal/geoaware.yaml "$@"
