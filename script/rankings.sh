#!/bin/sh
# Runs every row of the table of rankings (DSD zero-shot and few-shot, CLIP: docs/dsd.md) and prints it. Stopping is safe:
# the same command goes on. --mini: on the mini world; other arguments as in script/rank_table.py.
TABLE=script/rank_table.py
. "$(dirname "$0")/run_table.sh"
run_table "$@"
