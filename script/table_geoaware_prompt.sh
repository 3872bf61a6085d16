#!/bin/sh
# GeoAware-SC's post-processor on prompts: in words, learned before it, learned with it.
. "$(dirname "$0")/run_table.sh"
run_table table_geoaware_prompt "$@"
