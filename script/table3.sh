#!/bin/sh
# Table 3 of the paper, generalisation from one data set to another: runs the rows that are missing, then prints it.
. "$(dirname "$0")/run_table.sh"
run_table table3 "$@"
