#!/bin/sh
# Ablation: diffusion timestep of training.
. "$(dirname "$0")/../run_table.sh"
run_table train_timestep "$@"
