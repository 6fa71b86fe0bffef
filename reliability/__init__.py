"""What gce survives: each module is one check, run by ``python -m reliability NAME``.

A check runs for minutes to hours, writes what it found to ``docs/reliability/NAME.json``
(`record`), and says what of that stands in RELIABILITY.md (`report`).
"""
