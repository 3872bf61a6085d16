#!/bin/sh
# Renders the training scenes and pretrains the mini world's networks (VAE, DINOv2, Stable Diffusion) into asset/mini.
# Interrupted, the same command goes on from the last checkpoint. Options: --minutes or --samples, --stage, --device.
set -eu
cd "$(dirname "$0")/../.."
exec python -m script.mini.pretrain "$@"
