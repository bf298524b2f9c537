"""Bodies: images -> logits, around any mixer or kernel."""

from vix.backbones.base import Backbone
from vix.backbones.fnet2d import FNet2D
from vix.backbones.vit import VisionTransformer

__all__ = ["Backbone", "FNet2D", "VisionTransformer"]
