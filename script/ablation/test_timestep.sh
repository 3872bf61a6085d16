#!/bin/sh
# Ablation: accuracy of the text, Single and CPM prompts over the diffusion timestep of the test, 0 to 500.
# --mini for the mini world; --opts KEY VALUE ... as in script/rows.py. Writes OUTPUT_ROOT/figure/timestep_*.csv, .png.
. "$(dirname "$0")/../run_table.sh"
render_mini "$@"
run_rows test_timestep "$@"
