"""Training sequences without torch: prefix trees, the order of steps, and what sharing prefixes saves."""
