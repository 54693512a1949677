"""Orders, sets, masks and noise: what a method is, without a network."""
