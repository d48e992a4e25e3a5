"""Benchmarks: the whole backup against the script it replaces and against the physical limit (bench/README.md)."""
