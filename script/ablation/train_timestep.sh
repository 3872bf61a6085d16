#!/bin/sh
# Ablation: diffusion timestep of training.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/../run_table.sh"
run_table train_timestep "$@"
