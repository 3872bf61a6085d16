#!/bin/sh
# Table 1 of LDM_correspondences: CUB, PF-Willow, SPair-71k, under its authors' thresholds and the usual ones.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/run_table.sh"
run_table table_ldm --localiser centre "$@"
