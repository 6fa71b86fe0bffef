"""Benchmarks of gce against the machine's limits and other packages: ``python -m benchmarks``."""
