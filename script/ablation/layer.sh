#!/bin/sh
# Ablation: block of the UNet that features are read from.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/../run_table.sh"
run_table layer "$@"
