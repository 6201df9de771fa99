"""The configuration, and what the part of a family in it may say."""
