#!/bin/sh
# Ablation: size of the images.
. "$(dirname "$0")/../run_table.sh"
run_table image_size "$@"
