"""The ViT body: embedding, class token, positions, blocks of mixer and feed-forward, pooling, head.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, equations 1 to 4.
Shapes: b batch, n tokens, c width, y x the grid of tokens.
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from vix.backbones.base import Backbone, classifier
from vix.checkpointing import checkpointed
from vix.embeddings import EMBEDDINGS, Embedding, default_patch, grid_of
from vix.layers import DropPath, FeedForward, check_counts, check_rates, has_hooks
from vix.mixers import Mixer, MixerFactory
from vix.positions import LearnedPosition
from vix.tokens import Tokens, pair

Pool = Literal["cls", "mean"]


class Block(nn.Module):
    """One layer: x + mixer(norm(x)), then x + feed-forward(norm(x)).

    Args:
        dim: Width of a token.
        mixer: Lets the tokens see each other.
        mlp_dim: Hidden width of the feed-forward network.
        dropout: Probability of dropping a value in the feed-forward network.
        drop_path: Probability that an image skips a branch.
    """

    def __init__(self, dim: int, mixer: Mixer, mlp_dim: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_dim, dropout=dropout, last=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tokens, first: int | None = None) -> Tensor:
        """Maps (b n c) to (b n c), or to the `first` tokens alone."""
        normed = self.mixer_norm(x)
        mixed = self.mixer(normed, tokens) if first is None else self.mixer.first(normed, tokens, first)
        x = x[:, :first] + self.drop_path(mixed)
        return x + self.drop_path(self.mlp(x, self.mlp_norm))


class VisionTransformer(Backbone):
    """The body of the plain and hybrid families, around any mixer.

    Args:
        mixer: Makes the mixer of a block from (dim, tokens).
        image_size: Side of the images in pixels, or (height, width).
        patch_size: Side of a token in pixels, or (height, width); left out, the smallest that divides the image into at
            most 1,024 tokens.
        num_classes: Number of classes.
        dim: Width of a token.
        depth: Number of blocks.
        mlp_dim: Hidden width of the feed-forward networks.
        pool: What the classifier sees: the class token, or the mean of all tokens.
        class_token: Whether there is a class token; left out, only where it is pooled. The published `mean` has one and
            averages over it too.
        channels: Channels of the images.
        dropout: Probability of dropping a value in the feed-forward networks.
        emb_dropout: Probability of dropping a value of the embedded tokens.
        drop_path: Probability that an image skips a branch of the last block; it grows from 0 at the first.
        position: `learned` adds a table to the tokens, `none` adds nothing.
        embedding: `linear` for patches, `linear_normed` with normalisations before and after, as the package
            `vision_xformer` has them, `convolutional` for a stem.
        norm: Whether the last normalisation is of the pooled vector, as published, or of the tokens (as in MLP-Mixer);
            the same for a class token.

    Raises:
        ValueError: If an argument is out of range or the patch does not divide the image.
    """

    undecayed = ("class_token",)

    def __init__(
        self,
        *,
        mixer: MixerFactory,
        image_size: int | tuple[int, int] = 32,
        patch_size: int | tuple[int, int] | None = None,
        num_classes: int = 10,
        dim: int = 128,
        depth: int = 4,
        mlp_dim: int = 256,
        pool: Pool = "cls",
        class_token: bool | None = None,
        channels: int = 3,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        drop_path: float = 0.0,
        position: Literal["learned", "none"] = "learned",
        embedding: Embedding = "linear",
        norm: Literal["pooled", "tokens"] = "pooled",
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        check_counts(dim=dim, depth=depth, mlp_dim=mlp_dim)
        check_rates(dropout=dropout, emb_dropout=emb_dropout, drop_path=drop_path)
        for name, value, allowed in (
            ("pool", pool, ("cls", "mean")),
            ("position", position, ("learned", "none")),
            ("embedding", embedding, tuple(EMBEDDINGS)),
            ("norm", norm, ("pooled", "tokens")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if class_token is None:
            class_token = pool == "cls"
        elif pool == "cls" and not class_token:
            raise ValueError("pool='cls' needs a class token: leave class_token out or take pool='mean'")
        patch = default_patch(self.image_size) if patch_size is None else pair(patch_size, "patch_size")
        self.tokens = Tokens(grid_of(self.image_size, patch), prefix=int(class_token))
        self.pool, self.num_features, self.pinned = pool, dim, {"patch_size": patch}
        self.embedding = EMBEDDINGS[embedding](channels, dim, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim)) if class_token else None
        self.position = LearnedPosition(self.tokens, dim) if position == "learned" else None
        self.dropout = nn.Dropout(emb_dropout)
        # A single block is the last one, not the first.
        rates = [drop_path * index / (depth - 1) for index in range(depth)] if depth > 1 else [drop_path]
        self.blocks = nn.ModuleList(
            Block(dim, mixer(dim, self.tokens), mlp_dim, dropout=dropout, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(dim)
        self.norm_tokens = norm == "tokens"
        self.head = classifier(dim, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (b, channels, height, width) to the tokens (b n c) after the last block."""
        return self.through_blocks(images, None)

    def features_to_pool(self, images: Tensor) -> Tensor:
        """Does the same, or where the class token alone is pooled and no hook waits for the rest, makes it alone."""
        alone = self.pool == "cls" and not has_hooks(self.blocks[-1])
        return self.through_blocks(images, 1 if alone else None)

    def through_blocks(self, images: Tensor, first: int | None) -> Tensor:
        """Maps images to all tokens after the last block, or the `first` ones, for which that has less to do."""
        grid = grid_of((images.shape[-2], images.shape[-1]), self.pinned["patch_size"])
        tokens, x = Tokens(grid, self.tokens.prefix), images
        for index, block in enumerate(self.blocks):
            # Checkpointing makes the embedding again with the first block, whose input need not be kept either.
            layer = block if index else self.enter
            wanted = first if index + 1 == len(self.blocks) else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpointed(layer, block, x, tokens, wanted)
            else:
                x = layer(x, tokens, wanted)
        return x

    def enter(self, images: Tensor, tokens: Tokens, first: int | None) -> Tensor:
        """Maps images to the tokens (b n c) after the first block, or the `first` ones."""
        x = rearrange(self.embedding(images), "b y x c -> b (y x) c")
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.position is not None:
            x = self.position(x, tokens)
        out: Tensor = self.blocks[0](self.dropout(x), tokens, first)
        return out

    def pooled(self, features: Tensor) -> Tensor:
        """Maps the tokens (b n c) after the last block to the vector (b c) that the classifier sees."""
        if self.norm_tokens:
            features = self.norm(features)
        vector = features[:, 0] if self.pool == "cls" else features.mean(dim=1)
        return vector if self.norm_tokens else self.norm(vector)
