"""The named cases over commits, by asv: ``make bench-commits``."""
