"""Targets of fuzzing: what turns bytes into calls or models, and what is promised of these."""
