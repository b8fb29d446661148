"""Which elements of a captured tensor are kept, computed on the tensor's own device."""
