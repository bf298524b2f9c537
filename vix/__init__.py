"""ViX: vision transformers with any attention, for little data and small GPUs. Needs torch and einops only."""

from vix.attention import (
    KERNELS,
    Attention,
    AttentionSpec,
    Linformer,
    NystromAttention,
    Performer,
    SoftmaxAttention,
)
from vix.backbones import FNet2D
from vix.spec import build
from vix.systems import (
    SYSTEMS,
    FNet,
    HybridFNet,
    HybridMLPMixer,
    HybridViL,
    HybridViN,
    HybridViP,
    HybridViT,
    MLPMixer,
    ViL,
    ViN,
    ViP,
    ViT,
)

__version__ = "0.1.0"

__all__ = [
    "KERNELS",
    "SYSTEMS",
    "Attention",
    "AttentionSpec",
    "FNet",
    "FNet2D",
    "HybridFNet",
    "HybridMLPMixer",
    "HybridViL",
    "HybridViN",
    "HybridViP",
    "HybridViT",
    "Linformer",
    "MLPMixer",
    "NystromAttention",
    "Performer",
    "SoftmaxAttention",
    "ViL",
    "ViN",
    "ViP",
    "ViT",
    "build",
]
