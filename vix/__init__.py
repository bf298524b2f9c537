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
from vix.backbones import CCT, CvT, FNet2D, LeViT
from vix.spec import build
from vix.swap import Swapped, swap_attention
from vix.systems import (
    CCN,
    CCP,
    SYSTEMS,
    CvN,
    CvP,
    FNet,
    HybridFNet,
    HybridMLPMixer,
    HybridViL,
    HybridViN,
    HybridViP,
    HybridViT,
    LeViN,
    LeViP,
    MLPMixer,
    ViL,
    ViN,
    ViP,
    ViT,
)

__version__ = "0.1.0"

__all__ = [
    "CCN",
    "CCP",
    "CCT",
    "KERNELS",
    "SYSTEMS",
    "Attention",
    "AttentionSpec",
    "CvN",
    "CvP",
    "CvT",
    "FNet",
    "FNet2D",
    "HybridFNet",
    "HybridMLPMixer",
    "HybridViL",
    "HybridViN",
    "HybridViP",
    "HybridViT",
    "LeViN",
    "LeViP",
    "LeViT",
    "Linformer",
    "MLPMixer",
    "NystromAttention",
    "Performer",
    "SoftmaxAttention",
    "Swapped",
    "ViL",
    "ViN",
    "ViP",
    "ViT",
    "build",
    "swap_attention",
]
