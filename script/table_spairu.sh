#!/bin/sh
# SPair-U beside SPair-71k: points that nobody was trained on.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
run_table table_spairu "$@"
