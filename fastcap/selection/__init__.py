"""Which elements of a captured tensor are kept, computed on its own device."""
