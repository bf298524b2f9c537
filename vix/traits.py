"""What kind of net a net is: the words by which runs are grouped, tagged and compared."""

from torch import nn

from vix.attention import Attention
from vix.backbones import CCT, Backbone, CvT, LeViT, VisionTransformer
from vix.backbones.cct import SinePosition
from vix.backbones.fnet2d import FourierBlock
from vix.backbones.levit import LeViTAttention
from vix.embeddings import ConvolutionalEmbedding
from vix.mixers import FourierMixing, MLPMixing
from vix.positions import LearnedPosition, RotaryPosition

BODIES = (LeViT, CvT, CCT)


def traits(net: nn.Module) -> dict[str, str]:
    """Names a net's system, and where the net is ours its family, attention, embedding and position.

    They are read off the parts that the net is made of, so that a net composed freely is described as well.
    """
    found = {"system": type(net).__name__}
    if not isinstance(net, Backbone):
        return found
    convolutional = not isinstance(net, VisionTransformer) or isinstance(net.embedding, ConvolutionalEmbedding)
    return found | {
        "family": _family(net, convolutional),
        "attention": _attention(net),
        "embedding": "convolutional" if convolutional else "linear",
        "position": _position(net),
    }


def _family(net: Backbone, convolutional: bool) -> str:
    if isinstance(net, VisionTransformer):
        return "hybrid" if convolutional else "plain"
    return next((body.__name__ for body in BODIES if isinstance(net, body)), type(net).__name__)


def _attention(net: Backbone) -> str:
    """The kinds of kernel that let tokens see each other, in the order in which they come."""
    names = []
    for module in net.modules():
        if isinstance(module, Attention):
            names.append(type(module).__name__.removesuffix("Attention").lower())
        elif isinstance(module, FourierMixing | FourierBlock):
            names.append("fourier")
        elif isinstance(module, MLPMixing):
            names.append("mlp")
    return "+".join(dict.fromkeys(names)) or "none"


def _position(net: Backbone) -> str:
    for module in net.modules():
        if isinstance(module, RotaryPosition):
            return "rope_axial" if module.axial else "rope"
        if isinstance(module, LearnedPosition):
            return "learned"
        if isinstance(module, SinePosition):
            return "sine"
        if isinstance(module, LeViTAttention):
            return "bias" if module.bias is not None else "values" if module.value_position is not None else "none"
    return "none"
