"""Error rates, relatedness and findings about samples."""
