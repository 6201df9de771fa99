"""A Gaussian field with binomial observations; knows no model, file or hypothesis."""
