#!/bin/sh
# Ablation: accuracy of the text, Single and CPM prompts over the diffusion timestep of the test, 0 to 500, on validation
# pairs; reproduce.sh draws it. --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, ...
. "$(dirname "$0")/../run_table.sh"
run_table test_timestep "$@"
