"""What the names and shapes of an original's weights tell of the arguments of its constructor.

The rest is given by the caller or assumed from the author's script; what is ambiguous is an error that names what to
give.
"""

import math
from collections.abc import Mapping
from typing import Any

from vix.published.originals import ORIGINALS, Original
from vix.published.other_shapes import read_cct, read_cvt, read_levit, recognise_other
from vix.tokens import pair

Shapes = Mapping[str, tuple[int, ...]]

_FIRST = "layers.0."
_MARKS = {"ViN": "res_conv.weight", "ViP": "fast_attention.projection_matrix", "ViL": "proj_k", "ViT": "to_qkv.weight"}


def recognise(shapes: Shapes) -> str:
    """Returns the name of the published model whose weights these are; FNet2D also for the package's.

    Raises:
        ValueError: If they are of none.
    """
    if other := recognise_other(shapes):
        return other
    if "conv.1.weight" in shapes and "pool.2.weight" in shapes:
        return "FNet2D"
    if "4.0.fn.0.weight" in shapes:
        return "MLPMixer" if "2.0.fn.0.weight" in shapes else "HybridMLPMixer"
    attention = f"transformer.{_FIRST}0.fn."
    base = next((base for base, mark in _MARKS.items() if attention + mark in shapes), "FNet")
    package = "pip_" if "to_patch_embedding.3.weight" in shapes else ""
    hybrid = "Hybrid" if "to_patch_embedding.0.weight" in shapes else ""
    system = f"{package}{hybrid}{base}{'RoPE' if 'layer_pos_emb.emb' in shapes else ''}"
    unknown = base == "FNet" and any(key.startswith(attention) for key in shapes)
    if "cls_token" not in shapes or system not in ORIGINALS or unknown:
        few = ", ".join(key[:60] for key in list(shapes)[:3])
        raise ValueError(f"{few} ... are weights of no model that can be loaded: {', '.join(ORIGINALS)}")
    return system


class Reading:
    """Gathers arguments from the shapes of weights.

    Args:
        model: The published model.
        shapes: The shapes of its weights.
        given: The arguments that the caller gives.

    Attributes:
        told: What the shapes tell.
        assumed: What they do not tell and the caller did not give: values of the author's script.

    Raises:
        ValueError: If a weight is missing, an argument does not fit, or one has to be given.
    """

    def __init__(self, model: Original, shapes: Shapes, given: Mapping[str, Any]) -> None:
        self.model, self.shapes, self.given = model, shapes, given
        self.told: dict[str, Any] = {}
        self.assumed: dict[str, Any] = {}
        own = {"shell": self._shell, "mixer": self._mixer, "fnet2d": self._fnet2d}
        others = {"cct": read_cct, "cvt": read_cvt, "levit": read_levit}
        if model.family in own:
            own[model.family]()
        else:
            others[model.family](self)
        for name, default in model.defaults.items():
            if name not in self.told:
                self.assume(name, model.script.get(name, default))

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the original's constructor."""
        return self.model.complete({**self.assumed, **self.told, **self.given})

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        """Returns the shape of a weight that has so many axes.

        Raises:
            ValueError: If there is no such weight.
        """
        shape = self.shapes.get(key)
        if shape is None or len(shape) != axes or 0 in shape:
            found = "is missing" if shape is None else f"has shape {shape}"
            raise ValueError(f"the weights are not those of {self.model.system}: {key} {found}")
        return shape

    def tell(self, name: str, value: Any) -> None:
        """Notes what the shapes tell.

        Raises:
            ValueError: If the caller says otherwise.
        """
        if name in self.given and self.given[name] != value:
            raise ValueError(f"{name}={self.given[name]!r} does not fit the weights, which have {name}={value!r}")
        self.told[name] = value

    def assume(self, name: str, value: Any) -> Any:
        """Returns what the caller gave, or else this value, and notes that it was not told."""
        if name in self.given:
            return self.given[name]
        self.assumed[name] = value
        return value

    def depth(self, prefix: str) -> int:
        """Counts the numbers that follow a prefix in the names of weights."""
        parts = (key.removeprefix(prefix).partition(".")[0] for key in self.shapes if key.startswith(prefix))
        return len({part for part in parts if part.isdigit()})

    def _patch(self, width: int) -> tuple[int, int]:
        """Finds the channels and sides of a patch of so many values: square, and of three channels where that fits."""
        if "patch_size" in self.given:
            p, q = pair(self.given["patch_size"], "patch_size")
            if width % (p * q):
                raise ValueError(f"patch_size={p}x{q} does not fit the weights, whose patches have {width} values")
            self.tell("channels", width // (p * q))
            return p, q
        wanted = self.given.get("channels")
        sides = {c: math.isqrt(width // c) for c in range(1, width + 1) if wanted in (None, c)}
        fits = {c: side for c, side in sides.items() if c * side * side == width}
        if wanted is None and 3 in fits:
            self.assume("channels", 3)
            side = fits[3]
        elif len(fits) == 1:
            ((channels, side),) = fits.items()
            self.tell("channels", channels)
        elif fits:
            ways = ", ".join(f"channels={c} with patch_size={side}" for c, side in fits.items())
            raise ValueError(f"patches of {width} values are ambiguous ({ways}): give channels")
        else:
            raise ValueError(f"patches of {width} values are no squares of {wanted} channels: give patch_size")
        self.tell("patch_size", side)
        return side, side

    def _image(self, count: int, patch: tuple[int, int]) -> None:
        """Finds the size of an image of so many tokens: square, unless the caller says otherwise."""
        side = math.isqrt(count)
        if "image_size" in self.given:
            height, width = pair(self.given["image_size"], "image_size")
            if (height // patch[0]) * (width // patch[1]) != count:
                raise ValueError(f"image_size={height}x{width} does not fit the weights, which are for {count} tokens")
        elif side * side != count:
            raise ValueError(f"{count} tokens make no square: give image_size as a (height, width) pair")
        else:
            height, width = side * patch[0], side * patch[1]
            self.assume("image_size", height if height == width else (height, width))

    def _heads(self, inner: int, dim_head: int | None) -> None:
        """Splits the width of all heads; by the heads of the script where neither shapes nor caller tell."""
        name, part = "heads", self.model.script["heads"]
        if dim_head is not None:
            name, part = "dim_head", dim_head
            self.tell(name, part)
        elif "dim_head" in self.given and "heads" not in self.given:
            name, part = "dim_head", self.given["dim_head"]
        else:
            part = self.assume(name, part)
        if not isinstance(part, int) or part < 1 or inner % part:
            raise ValueError(f"{name}={part!r} does not divide the width {inner} of all heads: give heads or dim_head")
        if name == "heads":
            self.tell("dim_head", inner // part)
        elif self.model.fixed_heads is None:
            self.tell("heads", inner // part)

    def _attention(self, prefix: str) -> None:
        model = self.model
        dim_head = self.shape("layer_pos_emb.emb", 2)[1] if model.rope else None
        if model.base == "ViT":
            inner = self.shape(f"{prefix}to_qkv.weight", 2)[0] // 3
            if f"{prefix}to_out.0.weight" not in self.shapes:
                # The output projection is left away for one head as wide as a token.
                dim_head = inner
        elif model.base == "ViN":
            inner = self.shape(f"{prefix}to_qkv.weight", 2)[0] // 3
            dim_head = inner // self.shape(f"{prefix}res_conv.weight", 4)[0]
        else:
            inner = self.shape(f"{prefix}to_q.weight", 2)[0]
        if model.base == "ViP":
            features, dim_head = self.shape(f"{prefix}fast_attention.projection_matrix", 2)
            self.tell("features", features)
        elif model.base == "ViL":
            keys = self.shape(f"{prefix}to_k.weight", 2)[0]
            self.tell("k", self.shape(f"{prefix}proj_k", 2)[1])
            self.tell("share_kv", f"{prefix}to_v.weight" not in self.shapes)
            self.tell("one_kv_head", keys < inner)
            dim_head = keys if keys < inner else dim_head
        self._heads(inner, dim_head)

    def _shell(self) -> None:
        body = "token_mixer" if self.model.system == "pip_FNet" else "transformer"
        self.tell("dim", self.shape("cls_token", 3)[2])
        self.tell("num_classes", self.shape("mlp_head.1.weight", 2)[0])
        self.tell("depth", self.depth(f"{body}.layers."))
        self.tell("mlp_dim", self.shape(f"{body}.{_FIRST}1.fn.net.0.weight", 2)[0])
        patch = (1, 1)
        if self.model.hybrid:
            self.tell("patch_size", 1)
        else:
            linear = f"to_patch_embedding.{2 if self.model.package else 1}.weight"
            patch = self._patch(self.shape(linear, 2)[1])
        if "pos_embedding" in self.shapes:
            self._image(self.shape("pos_embedding", 3)[1] - 1, patch)
        if self.model.base != "FNet":
            self._attention(f"{body}.{_FIRST}0.fn.")

    def _mixer(self) -> None:
        first = 4 if self.model.hybrid else 2
        (dim,) = self.shape(f"{first}.0.norm.weight", 1)
        depth = sum(key.endswith(".0.norm.weight") for key in self.shapes)
        self.tell("dim", dim)
        self.tell("depth", depth)
        # Behind the blocks come the norm, the mean and the head.
        self.tell("num_classes", self.shape(f"{first + depth + 2}.weight", 2)[0])
        self.tell("expansion_factor", self.shape(f"{first}.1.fn.0.weight", 2)[0] / dim)
        patch = (1, 1)
        if self.model.hybrid:
            self.tell("patch_size", 1)
        else:
            patch = self._patch(self.shape("1.weight", 2)[1])
        self._image(self.shape(f"{first}.0.fn.0.weight", 3)[1], patch)

    def _fnet2d(self) -> None:
        dim = self.shape("conv.1.weight", 4)[0]
        hidden = self.shape(f"{_FIRST}ff.1.net.0.weight", 4)[0]
        self.tell("num_classes", self.shape("pool.2.weight", 2)[0])
        self.tell("depth", self.depth("layers."))
        self.tell("dim" if self.model.package else "final_dim", dim)
        self.tell("mlp_dim" if self.model.package else "mlp_mult", hidden if self.model.package else hidden / dim)
