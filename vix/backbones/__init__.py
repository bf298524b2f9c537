"""Bodies: images -> logits, around any mixer or kernel."""

from vix.backbones.base import Backbone
from vix.backbones.vit import VisionTransformer

__all__ = ["Backbone", "VisionTransformer"]
