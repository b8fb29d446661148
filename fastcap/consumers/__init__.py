"""What receives captures: tensors in memory, an archive, or a consumer of your own."""
