#!/bin/sh
# Table 3 of the paper, generalisation from one data set to another: runs the rows that are missing, then prints it.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
run_table table3 "$@"
