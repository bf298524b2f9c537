"""Bodies: images -> logits, around any mixer or kernel."""

from vix.backbones.base import Backbone
from vix.backbones.cct import CCT
from vix.backbones.cvt import CvT
from vix.backbones.fnet2d import FNet2D
from vix.backbones.levit import LeViT
from vix.backbones.vit import VisionTransformer

__all__ = ["CCT", "Backbone", "CvT", "FNet2D", "LeViT", "VisionTransformer"]
