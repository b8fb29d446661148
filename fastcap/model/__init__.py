"""Everything that touches the user's `nn.Module`: sites, hooks, parts, calling it, ending a pass early."""
