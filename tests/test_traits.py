"""The words for a net say what it is made of."""

import pytest
from torch import nn

import vix
from tests.nets import tiny
from vix.traits import traits

KINDS = {"T": "softmax", "L": "linformer", "P": "performer", "N": "nystrom"}
BODIES = {"Vi": "plain", "HybridVi": "hybrid", "LeVi": "LeViT", "Cv": "CvT", "CC": "CCT"}


@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_a_systems_name_agrees_with_what_it_is_made_of(name: str) -> None:
    found = traits(tiny(vix.SYSTEMS[name]))
    assert found["system"] == name
    special = {"FNet": ("plain", "fourier"), "MLPMixer": ("plain", "mlp")}
    special |= {f"Hybrid{key}": ("hybrid", kind) for key, (_, kind) in special.items()}
    family, attention = special.get(name) or (BODIES[name[:-1]], KINDS[name[-1]])
    assert (found["family"], found["attention"]) == (family, attention)
    assert found["embedding"] == ("linear" if family == "plain" else "convolutional")


@pytest.mark.parametrize(
    ("net", "position"),
    [
        (lambda: tiny(vix.ViP, position="rope"), "rope"),
        (lambda: tiny(vix.ViP, position="rope_axial"), "rope_axial"),
        (lambda: tiny(vix.ViP), "learned"),
        (lambda: tiny(vix.ViP, position="none"), "none"),
        (lambda: tiny(vix.CCT, position="sine"), "sine"),
        (lambda: tiny(vix.LeViT), "bias"),
        (lambda: tiny(vix.LeViN), "values"),
        (lambda: tiny(vix.LeViN, position="none"), "none"),
        (lambda: tiny(vix.CvT), "none"),
    ],
)
def test_the_position_is_read_off_the_parts(net, position: str) -> None:  # type: ignore[no-untyped-def]
    assert traits(net())["position"] == position


def test_a_foreign_net_has_its_name_alone() -> None:
    assert traits(nn.Linear(2, 2)) == {"system": "Linear"}
