#!/bin/sh
# Table 1 of the paper, the main comparison: runs the rows that are missing, then prints it.
. "$(dirname "$0")/run_table.sh"
run_table table1 "$@"
