"""From evidence to calls: weights of hypotheses, averages over them, false discoveries."""
