"""Comparisons of throughput, memory and learning. Each is one command: `python -m benchmarks.NAME`."""
