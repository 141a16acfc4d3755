"""The scale-wise causal transformer."""

from nextscale.transformer.attention import KVCache
from nextscale.transformer.model import ScaleTransformer
from nextscale.transformer.refiner import DrawNext

__all__ = ["DrawNext", "KVCache", "ScaleTransformer"]
