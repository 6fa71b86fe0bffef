"""The benchmarks of the source tree, on top of `gce.bench`: ``python -m benchmarks``."""
