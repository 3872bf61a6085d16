#!/bin/sh
# What the parts of LDM_correspondences do, beside the same-place guess and the category's word, on validation pairs.
. "$(dirname "$0")/../run_table.sh"
run_table ldm "$@"
