"""Who receives captures: rows in memory, an archive, and the place for a third."""
