"""Attention kernels: (b h n d), (b h m d), (b h m e) -> (b h n e). A new one is one file here and one line below."""

from inspect import isabstract

from vix.attention.base import Attention as Attention
from vix.attention.base import AttentionFactory as AttentionFactory
from vix.attention.base import AttentionSpec as AttentionSpec
from vix.attention.base import ShorteningAttention as ShorteningAttention
from vix.attention.linformer import Linformer as Linformer
from vix.attention.nystrom import NystromAttention as NystromAttention
from vix.attention.performer import Performer as Performer
from vix.attention.softmax import SoftmaxAttention as SoftmaxAttention

KERNELS: tuple[type[Attention], ...] = tuple(
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Attention) and not isabstract(kind)
)
"""Every kernel imported above; tests and benchmarks walk this."""
