"""Epigenotypes UU, UM and MM of all nodes of a lineage, summed out exactly."""
