"""Processes that the checks start: ``python -m reliability.workers.NAME``.

They know gce and what they are to do with it, and nothing of records. What a check is to be told
is a line of JSON on standard output.
"""
