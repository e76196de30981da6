"""Fused attention that also returns its entropy: one implementation a file, all with the same two functions."""
