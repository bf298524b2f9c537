"""The stand-in for the PyPI package `vision_xformer` 0.2.0: README, signatures, state dicts, arithmetic."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch

import vision_xformer
import vix
from tests.published.goldens import golden
from vix.published import original

NETS = ["FNet", "FNet2D", "ViL", "ViN", "ViP"]

# The examples of the package's README, a comma added after emb_dropout.
VIN = """
import torch, vision_xformer
from vision_xformer import ViN

model = ViN(
    image_size = 32,
    patch_size = 1,
    num_classes = 10,             
    dim = 128,  
    depth = 4,             
    heads = 4,      
    mlp_dim = 256,
    num_landmarks = 256,
    pool = 'cls',
    channels = 3,
    dropout = 0.,
    emb_dropout = 0.,
    dim_head = 32
)

img = torch.randn(1, 3, 32, 32)

preds = model(img) # (1, 10)
"""  # noqa: W291
VIP = """
import torch, vision_xformer
from vision_xformer import ViP

model = ViP(
    image_size = 32,
    patch_size = 1,
    num_classes = 10,             
    dim = 128,  
    depth = 4,             
    heads = 4,      
    mlp_dim = 256,
    dropout = 0.25,
    dim_head = 32
)

img = torch.randn(1, 3, 32, 32)

preds = model(img) # (1, 10)
"""  # noqa: W291
VIL = VIP.replace("ViP", "ViL")

# Counts of the package's own models with these arguments.
PARAMETERS = {"ViN": 662_560, "ViP": 663_568, "ViL": 809_744}
SHARED: dict[str, Any] = {"image_size": 16, "patch_size": 2, "num_classes": 5, "dim": 16, "depth": 2, "mlp_dim": 24}
SIGNATURES = {
    "ViN": "image_size patch_size num_classes dim depth heads mlp_dim num_landmarks=64 pool='cls' channels=3 "
    "dim_head=64 dropout=0.0 emb_dropout=0.0",
    "ViP": "image_size patch_size num_classes dim depth heads mlp_dim pool='cls' channels=3 dim_head=64 dropout=0.0 "
    "emb_dropout=0.0",
    "ViL": "image_size patch_size num_classes dim depth heads mlp_dim k=64 one_kv_head=True share_kv=True pool='cls' "
    "channels=3 dim_head=64 dropout=0.0 emb_dropout=0.0",
    "FNet": "image_size patch_size num_classes dim depth mlp_dim pool='cls' channels=3 dropout=0.0 emb_dropout=0.0",
    "FNet2D": "num_classes dim depth mlp_dim dropout=0.0",
}


def small(name: str, **more: Any) -> vix.backbones.Backbone:
    if name == "FNet2D":
        return vision_xformer.FNet2D(num_classes=5, dim=8, depth=2, mlp_dim=12)
    heads = {} if name == "FNet" else {"heads": 2, "dim_head": 8}
    net: vix.backbones.Backbone = getattr(vision_xformer, name)(**SHARED | heads | more)
    return net


@pytest.mark.parametrize("snippet", [VIN, VIP, VIL], ids=["ViN", "ViP", "ViL"])
def test_the_examples_of_its_readme_run_unchanged(snippet: str) -> None:
    scope: dict[str, Any] = {}
    exec(snippet, scope)
    assert scope["preds"].shape == (1, 10)
    count = sum(parameter.numel() for parameter in scope["model"].parameters())
    assert count == PARAMETERS[type(scope["model"]).__name__]


@pytest.mark.parametrize("snippet", [VIN, VIP, VIL], ids=["ViN", "ViP", "ViL"])
def test_the_examples_of_its_readme_run_with_vix_in_its_place(snippet: str) -> None:
    scope: dict[str, Any] = {}
    exec(snippet.replace("from vision_xformer import", "from vix import"), scope)
    assert scope["preds"].shape == (1, 10)
    assert type(scope["model"]).__module__ == "vix.systems"


@pytest.mark.parametrize("name", NETS)
def test_signatures_are_the_packages(name: str) -> None:
    parameters = inspect.signature(getattr(vision_xformer, name)).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    written = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    assert " ".join(written) == SIGNATURES[name]


def test_an_argument_that_the_package_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="ViP takes no num_landmark=4"):
        vision_xformer.ViP(**SHARED, heads=2, num_landmark=4)


@pytest.mark.parametrize("system", ["pip_FNet", "pip_ViL", "pip_ViN", "pip_ViP", "FNet2D"])
@torch.no_grad()
def test_its_state_dicts_load_and_give_its_logits(system: str) -> None:
    stored = golden(system)
    if system == "FNet2D":
        # The package names the widths, where the script multiplies.
        net = vision_xformer.FNet2D(num_classes=10, dim=16, depth=2, mlp_dim=32, dropout=0.5)
    else:
        net = getattr(vision_xformer, system.removeprefix("pip_"))(**stored.arguments)
    given = dict(stored.state)
    net.double().eval().load_state_dict(given)
    assert given.keys() == stored.state.keys()
    torch.testing.assert_close(net(stored.images), stored.logits, rtol=0, atol=1e-6 * stored.logits.abs().max().item())


@torch.no_grad()
def test_its_state_dict_loads_inside_a_larger_module() -> None:
    stored = golden("pip_ViN")
    outer = torch.nn.Sequential(torch.nn.Identity(), vision_xformer.ViN(**stored.arguments)).double().eval()
    outer.load_state_dict({f"1.{key}": value for key, value in stored.state.items()})
    torch.testing.assert_close(outer(stored.images), stored.logits)


def test_a_state_dict_that_does_not_fit_is_reported_as_torch_does() -> None:
    stored = golden("pip_ViP")
    net = vision_xformer.ViP(**stored.arguments)
    state = dict(stored.state) | {"more": torch.ones(1)}
    del state["mlp_head.1.bias"]
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*head\.bias.*Unexpected key.*more"):
        net.load_state_dict(state)
    result = net.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["head.bias"], ["more"])
    with pytest.raises(RuntimeError, match=r"needs \(10, 32\) of mlp_head\.1\.weight \(3, 32\)"):
        net.load_state_dict(state | {"mlp_head.1.weight": torch.zeros(3, 32)}, strict=False)


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_its_own_state_dict_comes_back_also_from_a_copy(name: str) -> None:
    net, images = small(name).eval(), torch.randn(2, 3, 16, 16)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), small(name).eval()):
        twin.load_state_dict(net.state_dict())
        torch.testing.assert_close(twin(images), net(images))


@pytest.mark.parametrize("name", ["FNet", "ViN", "ViP"])
@torch.no_grad()
def test_a_smaller_image_takes_the_first_positions(name: str) -> None:
    net, images = small(name).eval(), torch.randn(2, 3, 8, 16)
    cut = small(name, image_size=(8, 16)).eval()
    state = net.state_dict()
    cut.load_state_dict(state | {"position.table": state["position.table"][:, :33]})
    torch.testing.assert_close(net(images), cut(images))


def test_a_larger_image_is_refused() -> None:
    with pytest.raises(ValueError, match="65 tokens"):
        small("FNet")(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_learns(name: str) -> None:
    net = small(name)
    net(torch.randn(2, 3, 16, 16)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NETS)
def test_its_arguments_are_those_that_published_load_takes(name: str) -> None:
    taken = set(original(f"pip_{name}").defaults) - {"features"}
    assert set(inspect.signature(getattr(vision_xformer, name)).parameters) == taken
