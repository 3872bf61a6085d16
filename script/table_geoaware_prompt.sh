#!/bin/sh
# GeoAware-SC's post-processor on prompts: in words, learned before it, learned with it.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
run_table table_geoaware_prompt "$@"
