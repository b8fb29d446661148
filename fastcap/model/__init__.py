"""Everything that touches the user's `nn.Module`: sites, parts, hooks, and calling it."""
