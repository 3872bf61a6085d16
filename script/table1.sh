#!/bin/sh
# Table 1 of the paper, the main comparison: runs the rows that are missing, then prints it.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
run_table table1 "$@"
