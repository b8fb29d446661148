"""From device memory to host memory: staging chunks, pinned slots, copies and delivery."""
