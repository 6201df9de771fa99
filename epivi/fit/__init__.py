"""Stochastic variational inference over minibatches of loci."""
