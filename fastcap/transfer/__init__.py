"""Lanes: the ways from a value on a device to host memory."""
