"""Parts of script/benchmark.py: the plain reference, FLOP counts, clocks and memory, tables."""
