"""Throughput, memory and learning comparisons, each one command: `python -m benchmarks.NAME`."""
