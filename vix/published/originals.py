"""The published models one by one: what their constructors took, what their scripts gave, which net of ours each is.

Source: the code of Jeevan and Sethi, "Vision Xformers: Efficient Attention for Image Classification", 2021,
arXiv:2107.02239, and "Resource-efficient Hybrid X-formers for Vision", WACV 2022; `pip_*` are the models of its package
`vision_xformer` 0.2.0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vix.backbones import Backbone
from vix.backbones.cct import CCT
from vix.backbones.fnet2d import FNet2D
from vix.published.arguments import fnet2d, mixer, shell
from vix.published.others import (
    DEFAULTS_CCT,
    DEFAULTS_CVT,
    DEFAULTS_LEVIT,
    IGNORED,
    SCRIPT_CCT,
    SCRIPT_CVT,
    SCRIPT_LEVIT,
    cct,
    cvt,
    levit,
)
from vix.published.simplified import Simplified
from vix.systems import SYSTEMS

REQUIRED = object()
"""Stands where a constructor has no default."""

Family = Literal["shell", "mixer", "fnet2d", "cct", "cvt", "levit"]


@dataclass(frozen=True, kw_only=True)
class Original:
    """One published model.

    Args:
        system: Its name.
        base: The name without `pip_`, `Hybrid` and `RoPE`.
        net: Our class.
        family: Which body it has: the ViX shell, the sequence of MLP-Mixer, the map of FNet2D, or CCT's; or what its
            authors made of CvT's and LeViT's.
        defaults: Its constructor's arguments and their defaults, and what it had fixed inside that a copy may have
            changed (`k`, `num_landmarks`, `features`).
        script: What the author's script gave beyond the defaults, or the README of the package.
        hybrid: Whether it embeds by convolutions, from three channels whatever `channels` says.
        rope: Whether it has rotary instead of learned positions.
        package: Whether it is of the package, which normalises before and after its linear embedding.
        fixed_heads: The number of heads that it has whatever `heads` says, if so.
    """

    system: str
    base: str
    net: type[Backbone]
    family: Family
    defaults: Mapping[str, Any]
    script: Mapping[str, Any]
    hybrid: bool = False
    rope: bool = False
    package: bool = False
    fixed_heads: int | None = None

    @property
    def ignored(self) -> frozenset[str]:
        """The arguments that it takes and that change nothing."""
        names = {"rotary_position_emb"}
        names |= {"heads", "dim_head"} if self.base == "FNet" else set()
        names |= {"heads"} if self.fixed_heads else set()
        names |= {"channels"} if self.hybrid else set()
        names |= {"image_size"} if self.family in ("fnet2d", "levit") else set()
        return frozenset(names | IGNORED.get(self.system, set()))

    def complete(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns all arguments of the constructor.

        Raises:
            ValueError: If one is missing or unknown.
        """
        for name, value in arguments.items():
            if name not in self.defaults:
                raise ValueError(f"{self.system} takes no {name}={value!r}: it takes {', '.join(self.defaults)}")
        complete = {**self.defaults, **arguments}
        missing = [name for name, value in complete.items() if value is REQUIRED]
        if missing:
            raise ValueError(f"{self.system} needs {', '.join(missing)}")
        return complete

    def init_args(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Translates arguments of the original into those of `net`, which then computes the same.

        Raises:
            ValueError: If the original has no such argument, needs another, or does not run with it.
        """
        given = self.complete(arguments)
        if self.family in ("cct", "cvt", "levit"):
            return {"cct": cct, "cvt": cvt, "levit": levit}[self.family](self.system, given)
        return {"shell": shell, "mixer": mixer, "fnet2d": fnet2d}[self.family](self, given)


_TRAINED = {"image_size": 32, "patch_size": 1, "num_classes": 10, "dim": 128, "depth": 4, "heads": 4, "mlp_dim": 256}
_CCX: dict[str, type[Backbone]] = {"CCT": CCT, "CCN": SYSTEMS["CCN"], "CCP": SYSTEMS["CCP"]}
_LEVIT = ("image_size", "num_classes", "dim", "depth", "heads", "mlp_mult")
_FIXED_INSIDE: dict[str, dict[str, Any]] = {
    "ViL": {"k": 64, "one_kv_head": False, "share_kv": True},
    "ViP": {"features": None},
    "ViN": {"num_landmarks": 64},
}


def _vix(
    system: str, *, defaults: Mapping[str, Any] | None = None, fixed_heads: int | None = None, **script: Any
) -> Original:
    """Describes a model of the ViX shell, whose name says most of it."""
    package, hybrid, rope = system.startswith("pip_"), "Hybrid" in system, system.endswith("RoPE")
    base = system.removeprefix("pip_").removeprefix("Hybrid").removesuffix("RoPE")
    named = system.removeprefix("pip_").removesuffix("RoPE")
    signature: dict[str, Any] = dict.fromkeys(_TRAINED, REQUIRED)
    signature |= {"pool": "cls", "channels": 3, "dim_head": 64, "dropout": 0.0, "emb_dropout": 0.0}
    signature |= _FIXED_INSIDE.get(base, {}) | ({"rotary_position_emb": True} if rope else {}) | dict(defaults or {})
    if package and base == "FNet":
        signature = {name: value for name, value in signature.items() if name not in ("heads", "dim_head")}
    trained = {"dim_head": 32, **_TRAINED, "emb_dropout": signature["emb_dropout"], **script}
    return Original(
        system=system,
        base=base,
        net=SYSTEMS[named],
        family="shell",
        defaults=signature,
        script={name: value for name, value in trained.items() if name in signature},
        hybrid=hybrid,
        rope=rope,
        package=package,
        fixed_heads=fixed_heads,
    )


def _mlp_mixer(system: str, *, hybrid: bool, **script: Any) -> Original:
    signature = dict.fromkeys(("image_size", "channels", "patch_size", "dim", "depth", "num_classes"), REQUIRED)
    return Original(
        system=system,
        base="MLPMixer",
        net=SYSTEMS[system],
        family="mixer",
        defaults={**signature, "expansion_factor": 4, "dropout": 0.0},
        script={"channels": 3, "dim": 128, "depth": 4, "num_classes": 200, "expansion_factor": 1, **script},
        hybrid=hybrid,
    )


ORIGINALS: dict[str, Original] = {
    original.system: original
    for original in (
        _vix("ViT", dropout=0.25),
        _vix("ViL", defaults={"one_kv_head": True}),
        _vix("ViP"),
        _vix("ViN", dropout=0.25, fixed_heads=4),
        _vix("FNet", defaults={"dim_head": 32, "emb_dropout": 0.5}, emb_dropout=0.0),
        _vix("HybridViT"),
        _vix("HybridViL"),
        _vix("HybridViP"),
        _vix("HybridViN", dropout=0.25),
        _vix("HybridFNet", defaults={"dim_head": 32}),
        _vix("ViTRoPE"),
        _vix("ViLRoPE"),
        _vix("ViPRoPE"),
        _vix("ViNRoPE", defaults={"emb_dropout": 0.5}, fixed_heads=4),
        _vix("HybridViTRoPE"),
        _vix("HybridViLRoPE"),
        _vix("HybridViPRoPE"),
        _vix("HybridViNRoPE", defaults={"emb_dropout": 0.5}, dropout=0.5, fixed_heads=4),
        _mlp_mixer("MLPMixer", hybrid=False, image_size=64, patch_size=2),
        _mlp_mixer("HybridMLPMixer", hybrid=True, image_size=32, patch_size=1),
        Original(
            system="FNet2D",
            base="FNet2D",
            net=FNet2D,
            family="fnet2d",
            defaults={
                "num_classes": REQUIRED,
                "depth": REQUIRED,
                "image_size": 32,
                "final_dim": 16,
                "dropout": 0.0,
                "mlp_mult": 1,
            },
            script={"num_classes": 10, "depth": 5, "final_dim": 128, "dropout": 0.5, "mlp_mult": 2},
        ),
        _vix("pip_ViL", defaults={"one_kv_head": True}, dropout=0.25),
        _vix("pip_ViP", dropout=0.25),
        _vix("pip_ViN", num_landmarks=256),
        _vix("pip_FNet"),
        Original(
            system="pip_FNet2D",
            base="FNet2D",
            net=FNet2D,
            family="fnet2d",
            defaults={**dict.fromkeys(("num_classes", "dim", "depth", "mlp_dim"), REQUIRED), "dropout": 0.0},
            script={"num_classes": 10, "dim": 128, "depth": 5, "mlp_dim": 256},
            package=True,
        ),
        *(
            Original(system=name, base=name, net=net, family="cct", defaults=DEFAULTS_CCT, script=SCRIPT_CCT)
            for name, net in _CCX.items()
        ),
        *(
            Original(
                system=name,
                base=name,
                net=Simplified,
                family="cvt",
                defaults={"num_classes": REQUIRED, **DEFAULTS_CVT},
                script=SCRIPT_CVT,
            )
            for name in ("CvN", "CvP")
        ),
        *(
            Original(
                system=name,
                base=name,
                net=Simplified,
                family="levit",
                defaults={**dict.fromkeys(_LEVIT, REQUIRED), **DEFAULTS_LEVIT},
                script=SCRIPT_LEVIT,
            )
            for name in ("LeViN", "LeViP")
        ),
    )
}
"""Every published model that `load` knows, by its name."""


def original(system: str) -> Original:
    """Returns a published model.

    Raises:
        ValueError: If there is none of this name.
    """
    if system not in ORIGINALS:
        raise ValueError(f"no published system is called {system!r}: there are {', '.join(ORIGINALS)}")
    return ORIGINALS[system]
