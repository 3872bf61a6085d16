#!/bin/sh
# SPair-U beside SPair-71k: points that nobody was trained on.
. "$(dirname "$0")/run_table.sh"
run_table table_spairu "$@"
