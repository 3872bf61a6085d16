#!/bin/sh
# Ablation: every variant of CPM, Img/Pair x DINO/CLIP x Feat/Head.
. "$(dirname "$0")/../run_table.sh"
run_table variants "$@"
