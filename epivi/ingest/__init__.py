"""Counts of one sample from a file of any format."""
