#!/bin/sh
# Table 4 of the paper, the ablation of the conditional prompting module: runs the rows that are missing, then prints it.
. "$(dirname "$0")/run_table.sh"
run_table table4 "$@"
