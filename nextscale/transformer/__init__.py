"""The scale-wise causal transformer."""

from nextscale.transformer.attention import KVCache
from nextscale.transformer.model import ScaleTransformer

__all__ = ["KVCache", "ScaleTransformer"]
