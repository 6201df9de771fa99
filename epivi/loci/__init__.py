"""Loci of a cohort: counts of samples, joined and kept in files that are read by loci."""
