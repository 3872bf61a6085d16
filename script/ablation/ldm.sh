#!/bin/sh
# What the parts of LDM_correspondences do, beside the same-place guess and the category's word, on validation pairs.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/../run_table.sh"
run_table ldm --localiser nn "$@"
