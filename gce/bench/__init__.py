"""How fast gce is on this machine: ``python -m gce bench``.

`cases` says what is measured, `limits` what the machine can do at best, `peers` what other packages
do, `runner` takes the time, `report` and `picture` tell of it.
"""
