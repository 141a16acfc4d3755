"""The scale-wise causal transformer."""

from nextscale.transformer.attention import KVCache
from nextscale.transformer.model import ScaleTransformer
from nextscale.transformer.stem import Stem

__all__ = ["KVCache", "ScaleTransformer", "Stem"]
