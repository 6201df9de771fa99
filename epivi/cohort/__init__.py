"""Samples, individuals, and who descends from whom."""
