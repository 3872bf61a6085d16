#!/bin/sh
# Ablation: block of the UNet that features are read from.
. "$(dirname "$0")/../run_table.sh"
run_table layer "$@"
