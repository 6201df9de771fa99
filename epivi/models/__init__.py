"""Model families: the Pyro model of a family is the only definition of its density."""
