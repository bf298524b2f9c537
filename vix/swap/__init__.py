"""Another attention in a trained vision transformer, ours or of timm or torchvision, on the weights that it has."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from vix.attention import Attention, AttentionFactory, SoftmaxAttention
from vix.backbones import Backbone
from vix.spec import Recorded
from vix.swap.foreign import WRAPPERS, Wrapper, is_softmax
from vix.tokens import Tokens


def swap_attention(
    model: nn.Module,
    attention: AttentionFactory,
    layers: Sequence[int] | None = None,
    *,
    tokens: Tokens | None = None,
) -> nn.Module:
    """Puts a kernel in the place of a vision transformer's softmax attention, in place, and keeps all its weights.

    What a kernel learns starts as near to softmax as it can be (`Attention.approach_softmax`). Names in the state stay
    what they were; a kernel's own are added as `...attention.*`. The dropout of attention weights is the kernel's
    matter: the model's is not carried over.

    Args:
        model: A ViT or DeiT of timm, a ViT of torchvision, a ViT of ours, or what is built like them.
        attention: A kernel of `vix.attention`, or a partial of one.
        layers: Which attentions, counted from 0 in the order of the model; left out, all.
        tokens: The tokens of an image; left out, what the model says itself.

    Returns:
        The model.

    Raises:
        ValueError: If the model has no softmax attention that is known here, or no such layers; nothing is changed.
    """
    places = attention_layers(model)
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no softmax attention to swap: none of timm's, torch's or ours that computes "
            "softmax(q k^T / sqrt(d)) v of its tokens"
        )
    names = list(places)
    chosen = range(len(names)) if layers is None else sorted(set(layers))
    if wrong := [layer for layer in chosen if not 0 <= layer < len(names)]:
        raise ValueError(f"layers: {type(model).__name__} has attentions 0 to {len(names) - 1}, got {wrong[0]}")
    made: dict[nn.Module, nn.Module] = {}
    for name in (names[layer] for layer in chosen):
        original, wrapper = model.get_submodule(name), places[name]
        if wrapper is None:
            kernel: nn.Module = attention(cast(SoftmaxAttention, original).spec)
            _refuse_lost_bias(model.get_submodule(name.rpartition(".")[0]), kernel)
        else:
            kernel = wrapper(original, attention, tokens or tokens_of(model))
        for each in kernel.modules():
            if isinstance(each, Attention):
                each.approach_softmax()
        weight = next(original.parameters(), next(model.parameters()))
        made[original] = kernel.to(weight.device, weight.dtype).train(original.training)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in made:
                setattr(parent, name, made[child])
    if isinstance(model, Recorded):
        new = {part for kernel in made.values() for part in kernel.modules()}
        whole = new.issuperset(part for part in model.modules() if isinstance(part, Attention))
        for argument in {"attention", "shrinking_attention"} & {"attention", *model._recorded}:
            model._recorded[argument] = attention if whole and not isinstance(model, Swapped) else _Several()
    return model


def attention_layers(model: nn.Module) -> dict[str, Wrapper | None]:
    """Names of the softmax attentions that can be swapped, in order, with what takes their place.

    Returns:
        None for a kernel of ours, in whose place another kernel goes as it is.
    """
    # Their fast path reads the weights of their attention past any forward.
    closed = {
        child
        for layer in model.modules()
        if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        for child in layer.children()
    }
    found: dict[str, Wrapper | None] = {}
    for name, module in model.named_modules():
        if isinstance(module, SoftmaxAttention):
            found[name] = None
        elif module not in closed:
            for wrapper in WRAPPERS:
                if wrapper.recognises(module) and is_softmax(module, wrapper):
                    found[name] = wrapper
    return found


def tokens_of(model: nn.Module) -> Tokens:
    """The tokens of an image as a model says them: ours, timm's or torchvision's.

    Raises:
        ValueError: If it does not say.
    """
    about: Any = model
    if isinstance(getattr(model, "tokens", None), Tokens):
        return about.tokens
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None:
        return Tokens((int(grid[0]), int(grid[1])), int(getattr(model, "num_prefix_tokens", 1)))
    if all(isinstance(getattr(model, name, None), int) for name in ("image_size", "patch_size", "seq_length")):
        side = about.image_size // about.patch_size
        return Tokens((side, side), about.seq_length - side * side)
    raise ValueError(f"{type(model).__name__} does not say how many tokens it has: give tokens=Tokens((y, x), prefix)")


def _refuse_lost_bias(place: nn.Module, kernel: nn.Module) -> None:
    """LeViT's positions are a bias on the logits, which most kernels have none of."""
    if getattr(place, "bias", None) is not None and not getattr(kernel, "accepts_bias", False):
        raise ValueError(
            f"{type(kernel).__name__} takes no bias on its logits, which tells {type(place).__name__} where tokens "
            "stand: swap in a net made with position='values' or 'none'"
        )


class _Several:
    """Stands in a net's record for attentions that differ by layer, which a spec has no words for."""

    def __repr__(self) -> str:
        return "attention that differs by layer (vix.Swapped has words for it)"


class Swapped(Backbone):
    """A net with another attention in all or some of its layers, with a spec: for YAMLs, runs and checkpoints.

    Args:
        net: Makes the net from image_size, num_classes and channels: a system, or a partial of one.
        attention: Makes the kernels.
        layers: Which attentions, counted from 0; left out, all.
        image_size: Side of the images in pixels, or (height, width).
        num_classes: Number of classes.
        channels: Channels of the images.

    Raises:
        ValueError: If the net has no softmax attention, or no such layers.
    """

    def __init__(
        self,
        *,
        net: Callable[..., nn.Module],
        attention: AttentionFactory,
        layers: Sequence[int] | None = None,
        image_size: int | tuple[int, int] = 32,
        num_classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__(image_size=image_size, num_classes=num_classes, channels=channels)
        made: Any = net(image_size=self.image_size, num_classes=num_classes, channels=channels)
        self.tokens, self.num_features = tokens_of(made), made.num_features
        self.net: Any = swap_attention(made, attention, layers)
        # What the net chose by the size of its images stays when `resized` makes it for another.
        self._recorded["net"] = partial(net, **getattr(made, "pinned", {}))

    @property
    def head(self) -> nn.Module:  # type: ignore[override]  # the others' is an attribute
        """The net's classifier."""
        return self.get_classifier()

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images to what the net's head pools."""
        return cast(Tensor, self.net.forward_features(images))

    def pooled(self, features: Tensor) -> Tensor:
        """Maps features to the vector that the net's classifier sees."""
        return cast(Tensor, self.net.forward_head(features, pre_logits=True))

    def get_classifier(self) -> nn.Module:
        """Returns the net's classifier."""
        return cast(nn.Module, self.net.get_classifier())

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the net's classifier by a fresh one."""
        self.net.reset_classifier(num_classes)
        self.num_classes = self._recorded["num_classes"] = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Has the net compute its blocks again in backward."""
        self.net.set_grad_checkpointing(enable)
