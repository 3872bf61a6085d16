#!/bin/sh
# GeoAware-SC's main table: SPair-71k, AP-10K's three settings, PF-Pascal.
. "$(dirname "$0")/run_table.sh"
run_table table_geoaware "$@"
