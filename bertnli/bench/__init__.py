"""Benchmarks: contestants that take turns, records of them, and a short measurement of this machine."""
