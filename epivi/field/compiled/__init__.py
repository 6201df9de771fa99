"""The inner integral of the evidence, compiled: `nodes` is what the rest of epivi calls."""
