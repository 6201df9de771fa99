"""One file a format: what a row or a read of it says."""
