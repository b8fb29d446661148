"""From what a caller passes as a dataset to batches of samples whose order is known."""
