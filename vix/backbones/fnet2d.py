"""FNet2D: Fourier mixing of a whole map, over its channels, rows and columns at once.

Source: the model of this name in the code of Jeevan and Sethi, "Vision Xformers: Efficient Attention for Image
Classification", 2021, arXiv:2107.02239; no paper describes it.
Cost: O(c y x log(c y x)) time a block. Shapes: b batch, c width, y x the map, one token a pixel.
"""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vix.backbones.base import Backbone, classifier
from vix.checkpointing import checkpointed
from vix.layers import FeedForward, check_counts, widen
from vix.mixers.fourier import transform_by_products
from vix.tokens import Tokens


class FourierBlock(nn.Module):
    """One layer: x + feed-forward(norm(real part of the DFT of x)), with one residual around it all.

    The DFT is not normalised and multiplies values by about sqrt(c y x / 2); the running statistics of the
    normalisation take this up. Values leave float16's range, so float16 is mixed in float32.

    Args:
        dim: Width of a token.
        mlp_dim: Hidden width of the feed-forward network.
        dropout: Probability of dropping a value in it.
    """

    def __init__(self, dim: int, mlp_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.mlp = FeedForward(dim, mlp_dim, dropout=dropout, last=True)

    def mix(self, x: Tensor) -> Tensor:
        """Maps (b c y x) to the normalised real part of its transform, as (b y x c)."""
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_exporting():
                mixed = transform_by_products(widen(x), (1, 2, 3))
            else:
                mixed = torch.fft.fftn(widen(x), dim=(1, 2, 3)).real
        mixed = mixed if x.dtype == torch.float16 else mixed.to(x.dtype)
        return rearrange(self.norm(mixed), "b c y x -> b y x c")

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Maps (b c y x) to (b c y x); `recompute` keeps nothing of the feed-forward network for backward."""
        mixed = self.mix(x)
        # The normalisation stays outside: computed again, it would count the batch twice in its statistics.
        out = checkpointed(self.mlp, self.mlp, mixed) if recompute else self.mlp(mixed)
        return x + rearrange(out, "b y x c -> b c y x")


class FNet2D(Backbone):
    """Two convolutions, Fourier blocks, the mean over the map and a linear classifier; any image size in forward.

    Args:
        image_size: Side of the images in pixels, or (height, width); nothing in the net depends on it.
        num_classes: Number of classes.
        dim: Width of a token.
        depth: Number of blocks.
        mlp_dim: Hidden width of the feed-forward networks.
        channels: Channels of the images.
        dropout: Probability of dropping a value in the feed-forward networks.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        dim: int = 128,
        depth: int = 4,
        mlp_dim: int = 256,
        channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        for name, value, least in (("dim", dim, 2), ("depth", depth, 1), ("mlp_dim", mlp_dim, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        check_counts(depth=depth)
        self.tokens, self.num_features = Tokens(self.image_size), dim
        self.stem = nn.Sequential(
            nn.Conv2d(channels, dim // 2, 3, padding=1),
            nn.Conv2d(dim // 2, dim, 3, padding=1),
        )
        self.blocks = nn.ModuleList(FourierBlock(dim, mlp_dim, dropout=dropout) for _ in range(depth))
        self.head = classifier(dim, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to the map (b c y x) after the last block."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x, recompute=self.grad_checkpointing and torch.is_grad_enabled())
        return x

    def pooled(self, features: Tensor) -> Tensor:
        """Maps the map (b c y x) after the last block to the vector (b c) that the classifier sees."""
        return reduce(features, "b c y x -> b c", "mean")
