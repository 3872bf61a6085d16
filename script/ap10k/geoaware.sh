#!/bin/sh
# Train GeoAware-SC's post-processor on AP-10K. Extra arguments are KEY VALUE settings or flags of train.py.
. "$(dirname "$0")/../launch.sh"
train config/ap10k/geoaware.yaml "$@"
