#!/bin/sh
# Renders the training scenes and pretrains the networks of the mini world (VAE, DINOv2, Stable Diffusion, and another for DSD) into
# asset/mini, and writes their model card. Takes about two hours on two CPU cores. Interrupted, even
# killed, the same command goes on from the last checkpoint (one every minute or so) in asset/mini/work, which may be deleted
# at the end; the networks in asset/mini are replaced when all are finished.
# Options: --stage, --share (of samples and scenes, for a trial), --seed, --work, --out.
. "$(dirname "$0")/../script/setup.sh"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
exec "$PYTHON" -m mini.pretrain.pretrain "$@"
