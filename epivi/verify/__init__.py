"""Is the answer calibrated? Simulation, comparison of methods, pictures."""
