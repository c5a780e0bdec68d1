"""What becomes of a meta-gradient: chunks, graphs, its guard, the optimiser that it moves."""
