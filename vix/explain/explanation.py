"""One image through one net: what every layer looked at, and what reached the classifier.

Shapes: h heads, n query tokens, m key tokens, y x the grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vix.explain.capture import capture
from vix.explain.mixing import Mixing, Window, mean_of_heads, on_grid
from vix.explain.statistics import Statistics


@dataclass(frozen=True)
class Layer:
    """What one layer did.

    Args:
        mixing: Its matrix, and who its tokens are.
        maps: What the class token took from each place (h y x); where there is none, the mean over all queries.
        statistics: Numbers by name, one a head (h,); see `Statistics.means`.
        uniform: The same for attention to all keys alike.
    """

    mixing: Mixing
    maps: Tensor
    statistics: dict[str, Tensor]
    uniform: dict[str, float]

    @property
    def is_signed(self) -> bool:
        """Whether more than a hundredth of the weights, by size, is negative, so that a map needs two colours."""
        return bool((self.statistics["negative"] > 0.01).any())


@dataclass(frozen=True)
class Explanation:
    """What a net looked at in one image.

    Args:
        image_size: Height and width in pixels.
        logits: What the net said (classes,).
        layers: First to last.
        rollout: Where the classifier's token came from (y x), on the grid of the first layer; sums to one.
        on_class_token: How much of it stayed in class tokens instead, in [0, 1].
    """

    image_size: tuple[int, int]
    logits: Tensor
    layers: tuple[Layer, ...]
    rollout: Tensor
    on_class_token: float


@torch.no_grad()
def explain(net: nn.Module, image: Tensor) -> Explanation:
    """Explains what a net sees in one image; no matrix is built that would not fit.

    The rollout is that of Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv:2005.00928:
    the product over the layers of (A + I) / 2, where A is the mean over heads, seen from the token that is classified
    (the class token; the mean or the weights of a pooling where there is none). A layer without a residual, such as the
    shrinking ones of LeViT, is A alone. Where A is no mean (negative weights, other sums than one) its weights count by
    their sizes. CvT's convolutions hand weight on to the tokens of their windows.

    Args:
        net: A net of ours, or any around our kernels.
        image: A normalised image (channels y x), of the size that the net was built for.

    Raises:
        ValueError: If nothing in the net mixes tokens in a way that is known, or the image has another size.
    """
    captured = capture(net, image)
    size = (image.shape[-2], image.shape[-1])
    weights, layers = captured.readout, []
    for step in reversed(captured.steps):
        if isinstance(step, Window):
            # A class token that joined behind the window came from no place.
            weights = step.pull(weights[len(weights) - step.outputs.count :])
            continue
        layer, weights = _layer(step, weights, size)
        layers.append(layer)
    first = layers[-1].mixing
    tokens = first.queries if first.window is not None else first.keys
    place = on_grid(weights, tokens)
    return Explanation(
        image_size=size,
        logits=captured.logits,
        layers=tuple(reversed(layers)),
        rollout=place / place.sum(),
        on_class_token=1 - float(place.sum()),
    )


def _layer(mixing: Mixing, weights: Tensor, image_size: tuple[int, int]) -> tuple[Layer, Tensor]:
    """Reads the rows of a layer once, and hands the weights of its outputs on to its inputs."""
    statistics = Statistics(mixing, image_size)
    reached = torch.zeros(mixing.keys.count).to(weights)
    seen = torch.zeros(len(mixing.heads), mixing.keys.count).to(weights)
    needed = torch.isin(torch.arange(mixing.queries.count).to(statistics.sample), statistics.sample)
    needed |= weights != 0
    if not mixing.queries.prefix:
        needed[:] = True
    for indices, rows in mixing.parts(needed.nonzero()[:, 0]):
        statistics.add(indices, rows)
        reached += weights[indices] @ mean_of_heads(rows)
        if not mixing.queries.prefix:
            seen += rows.sum(dim=-2) / mixing.queries.count
        elif indices[0] == 0:
            seen = rows[:, 0]
    if mixing.window is not None:
        reached = mixing.window.pull(reached)
    layer = Layer(mixing, on_grid(seen, mixing.keys), statistics.means(), statistics.uniform())
    return layer, (weights + reached) / 2 if mixing.has_residual else reached
