"""Pretraining of the mini world's networks: `python -m script.mini.pretrain`."""
