"""epivi: calibrated per-locus evidence on the inheritance of DNA methylation."""

__version__ = "0.1.0"
