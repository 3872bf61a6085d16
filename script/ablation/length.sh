#!/bin/sh
# Ablation: numbers of learned tokens, global and conditional.
. "$(dirname "$0")/../run_table.sh"
run_table length "$@"
