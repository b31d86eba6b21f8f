"""Damage to the kernels, one change at a time, and whether the tests notice: see ``ptx/mutants.py``."""
