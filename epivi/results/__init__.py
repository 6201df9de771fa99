"""Finished results: queries and the summary of a run."""
