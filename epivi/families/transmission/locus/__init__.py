"""Posteriors of one locus by the methods that `epivi diagnose` compares."""
