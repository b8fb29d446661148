"""A stand-in CUDA runtime: torch's own CUDA host code on a machine without a GPU (README.md)."""
