"""Targets of fuzzing: what turns bytes into a call or a model, and holds the promises against it."""
