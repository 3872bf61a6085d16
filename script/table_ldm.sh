#!/bin/sh
# Table 1 of LDM_correspondences: CUB, PF-Willow, SPair-71k, under its authors' thresholds and the usual ones.
. "$(dirname "$0")/run_table.sh"
run_table table_ldm "$@"
