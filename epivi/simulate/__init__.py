"""Simulated cohorts: pedigrees, positions, files."""
