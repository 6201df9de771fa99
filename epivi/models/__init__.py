"""The Pyro model of every family, the only definition of its density, and what the commands need of a family."""
