"""Attention kernels: (b h n d), (b h m d), (b h m e) -> (b h n e). A new one is one file here and one line below."""

from vix.attention.base import Attention, AttentionFactory, AttentionSpec
from vix.attention.linformer import Linformer
from vix.attention.nystrom import NystromAttention
from vix.attention.performer import Performer
from vix.attention.softmax import SoftmaxAttention

KERNELS: tuple[type[Attention], ...] = (SoftmaxAttention, Linformer, Performer, NystromAttention)
"""Every kernel; tests and benchmarks walk this."""

__all__ = [
    "KERNELS",
    "Attention",
    "AttentionFactory",
    "AttentionSpec",
    "Linformer",
    "NystromAttention",
    "Performer",
    "SoftmaxAttention",
]
