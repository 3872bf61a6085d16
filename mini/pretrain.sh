#!/bin/sh
# Renders the training scenes and pretrains the networks of the mini world (VAE, DINOv2, Stable Diffusion) into
# asset/mini. Takes two to three hours on two CPU cores. Interrupted, the same command goes on from the last checkpoint.
# Options: --minutes or --samples (budget), --stage, --device, --scenes, --seed, --work, --out.
# Two processes on a CPU: torchrun --nproc-per-node 2 -m mini.pretrain.pretrain (the batch is shared between them).
set -eu
cd "$(dirname "$0")/../.."
exec python -m mini.pretrain.pretrain "$@"
