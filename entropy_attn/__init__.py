"""Entropy-guided attention for private language models."""

from entropy_attn import entropy
from entropy_attn.attention import dot_product_attention

__all__ = ["dot_product_attention", "entropy"]
