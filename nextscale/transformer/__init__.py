"""The scale-wise causal transformer."""

from nextscale.transformer.attention import KVCache
from nextscale.transformer.model import ScaleTransformer
from nextscale.transformer.refiner import DrawNext
from nextscale.transformer.scorer import Scorer

__all__ = ["DrawNext", "KVCache", "ScaleTransformer", "Scorer"]
