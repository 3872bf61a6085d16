#!/bin/sh
# Table 2 of the paper, SPair-71k by category: runs the rows that are missing, then prints it.
. "$(dirname "$0")/run_table.sh"
run_table table2 "$@"
