"""The field in torch, for a GPU."""
