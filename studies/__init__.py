"""Experiments with the package; not part of the wheel."""
