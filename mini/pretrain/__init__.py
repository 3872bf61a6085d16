"""Pretraining of the mini world's networks: `python -m mini.pretrain.pretrain`."""
