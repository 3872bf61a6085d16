#!/bin/sh
# Train GeoAware-SC's post-processor on SPair-71k. Extra arguments are KEY VALUE settings or flags of train.py.
. "$(dirname "$0")/../launch.sh"
train config/spair/geoaware.yaml "$@"
