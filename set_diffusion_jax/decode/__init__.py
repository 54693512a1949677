"""Generation: one compiled loop for every method."""
