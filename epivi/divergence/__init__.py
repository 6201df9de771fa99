"""Divergence of pairs of samples, and what rates it supports."""
