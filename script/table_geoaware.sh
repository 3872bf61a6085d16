#!/bin/sh
# GeoAware-SC's main table: SPair-71k, AP-10K's three settings, PF-Pascal.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
run_table table_geoaware "$@"
