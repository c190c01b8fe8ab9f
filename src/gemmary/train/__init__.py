"""Training: one trainer, objectives and optimizers as values, what is learned as a choice."""
