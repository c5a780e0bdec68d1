"""Ways to compute the meta-gradient, each for any learner."""
