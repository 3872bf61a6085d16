#!/bin/sh
# Ablation: every variant of CPM, Img/Pair x DINO/CLIP x Feat/Head.
# --mini for the mini world; other arguments as in script/table.py: --seeds 0 1 2, --opts KEY VALUE ...
. "$(dirname "$0")/../run_table.sh"
run_table variants "$@"
