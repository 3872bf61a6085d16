#!/bin/sh
# Ablation: accuracy of the text, Single and CPM prompts over the diffusion timestep of the test, 0 to 500, on validation
# pairs; reproduce.sh draws it.
. "$(dirname "$0")/../run_table.sh"
run_table test_timestep "$@"
