"""Mixers: (b n c) -> (b n c), the part of a block in which tokens see each other."""

from vix.mixers.base import Mixer, MixerFactory
from vix.mixers.fourier import FourierMixing
from vix.mixers.mlp import MLPMixing
from vix.mixers.self_attention import SelfAttention

__all__ = ["FourierMixing", "MLPMixing", "Mixer", "MixerFactory", "SelfAttention"]
