#!/bin/sh
# Ablation: what the Single prompt starts from.
. "$(dirname "$0")/../run_table.sh"
run_table init "$@"
