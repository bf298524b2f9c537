"""Every system in timm's registry: `import vix.timm`, then `timm.create_model("vix_vip", img_size=32, num_classes=10)`.

Names are `vix_` and the name of the system's YAML: `vix_vip`, `vix_hybrid_vin_rope`, `vix_cvn` ... Arguments are those
of the system, and timm's words for them: img_size, in_chans, drop_rate, drop_path_rate. There are no pretrained
weights; `checkpoint_path` loads weights that `main.py export --format safetensors` or torch wrote.
"""

import re
import sys
from typing import Any

import timm.models
from torch import nn

from vix.backbones import Backbone
from vix.spec import parameters_of
from vix.systems import SYSTEMS, ViT

# timm's words for our arguments.
WORDS = {"img_size": "image_size", "in_chans": "channels", "drop_rate": "dropout", "drop_path_rate": "drop_path"}
# timm gives these to every model; they speak of pretrained weights and of its builder.
NOT_OURS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def snake(name: str) -> str:
    """The stem of a system's YAML: HybridViP is hybrid_vip, MLPMixer is mlp_mixer, CvN is cvn."""
    words = re.sub(r"^(Hybrid)", r"\1_", name)
    return re.sub(r"MLPMixer", "mlp_mixer", words).lower()


def systems() -> dict[str, tuple[type[Backbone], dict[str, Any]]]:
    """The registered names, with the system and the arguments that the name stands for."""
    named: dict[str, tuple[type[Backbone], dict[str, Any]]] = {}
    for name, system in SYSTEMS.items():
        named[f"vix_{snake(name)}"] = system, {}
        if issubclass(system, ViT):
            named[f"vix_{snake(name)}_rope"] = system, {"position": "rope"}
    return named


def default_cfg(net: Backbone, architecture: str) -> dict[str, Any]:
    """What timm's tools ask of a model: `timm.data.resolve_data_config(model=net)` reads the size from it."""
    return {
        "url": "",
        "architecture": architecture,
        "num_classes": net.num_classes,
        "input_size": (net.channels, *net.image_size),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5,) * net.channels,
        "std": (0.5,) * net.channels,
        "first_conv": None,
        "classifier": "head",
    }


def make(architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Makes a registered system from timm's arguments.

    Args:
        architecture: One of the names of `systems`.
        pretrained: There are none, so True is refused.
        arguments: The system's, in our words or timm's.

    Raises:
        ValueError: If pretrained weights are asked for, or an argument is given in both words.
        TypeError: If the system takes no such argument.
    """
    if pretrained:
        raise ValueError(f"{architecture} has no pretrained weights; give checkpoint_path or vix.hub.from_pretrained")
    system, settled = systems()[architecture]
    allowed = parameters_of(system)
    ours = dict(settled)
    for name, value in arguments.items():
        if name in NOT_OURS:
            continue
        word = name if name in allowed else WORDS.get(name, name)
        if word in ours:
            raise ValueError(f"{architecture}: {word} is given twice" + (f", once as {name}" if word != name else ""))
        ours[word] = value
    net = system(**ours)
    cfg: Any = default_cfg(net, architecture)
    # timm's tools read these, its builder would have set them.
    net.pretrained_cfg = net.default_cfg = cfg
    return net


def _register() -> None:
    """Gives timm one function for each name; its registry wants them to be this module's."""
    module = sys.modules[__name__]
    for architecture in systems():

        def entry(pretrained: bool = False, *, _architecture: str = architecture, **arguments: Any) -> nn.Module:
            return make(_architecture, pretrained=pretrained, **arguments)

        entry.__name__ = entry.__qualname__ = architecture
        entry.__doc__ = f"{systems()[architecture][0].__name__} of vix; see `vix.timm.make`."
        if architecture not in timm.models.list_models(architecture):
            setattr(module, architecture, timm.models.register_model(entry))


_register()
