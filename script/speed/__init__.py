"""Parts of script/benchmark.py: FLOP counts, the plain reference, and what is compared in each mode."""
