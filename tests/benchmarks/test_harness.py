import copy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import data_pipeline, harness, peers
from benchmarks.harness import Pairs, TrainingStep, chosen, in_pairs
from benchmarks.packages import Packages, replaced, with_plain_layers
from datamodules.transforms import Augment
from vix import published


def test_pairs_change_who_comes_first() -> None:
    order: list[str] = []

    def step(name: str) -> float:
        order.append(name)
        return 1.0

    taken = in_pairs(lambda: step("o"), lambda: step("t"), 3, warm_up=1)
    assert "".join(order) == "ot" + "ot" + "to" + "ot"
    assert (len(taken.ours), len(taken.theirs)) == (3, 3)


def test_ratios_are_taken_by_pairs() -> None:
    # The second pair was disturbed as a whole; its ratio was not.
    summary = Pairs([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]).summary()
    assert summary["ratio"] == [2, 2, 2]
    assert summary["ours_ms"][1] == 1000


def test_a_training_step_has_the_gradients_of_one_step() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    step = TrainingStep(net, torch.ones(2, 3, 2, 2))
    step.seconds()
    once = net[1].weight.grad.clone()
    step.seconds()
    torch.testing.assert_close(net[1].weight.grad, once)
    # The flattened images, and the logarithms of the softmax.
    assert step.bytes() >= 2 * 12 * 4


def row(ratio: float, kept: float, roofline: float) -> dict[str, object]:
    return {
        "targets": {"ratio": 1.3, "bytes": 0.5},
        "ratio": [ratio, ratio, ratio],
        "bytes": {"ratio": kept},
        "roofline": {"times": roofline},
    }


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        (row(1.4, 0.4, 9), True),
        (row(1.2, 0.4, 9), False),
        (row(1.4, 0.6, 9), False),
        (row(1.2, 0.4, 1.2), True),
        (row(1.2, 0.6, 1.2), False),
    ],
)
def test_a_row_is_met_in_bytes_and_in_time_or_near_the_roofline(measured: dict[str, object], met: bool) -> None:
    assert peers.met(measured) is met


def test_rows_are_chosen_by_part_of_their_name() -> None:
    assert chosen("ViN, 64 landmarks", None)
    assert chosen("ViN, 64 landmarks", ["vin"])
    assert not chosen("ViN, 64 landmarks", ["ViP", "256"])


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"vision-xformer==0\.2\.0 is not in"):
        Packages(tmp_path)


def test_a_replaced_name_is_gone_afterwards() -> None:
    owner = Namespace(kept=1)
    with replaced(owner, "kept", 2), replaced(owner, "new", 3):
        assert (owner.kept, owner.new) == (2, 3)
    assert owner == Namespace(kept=1)


def test_both_pipelines_of_the_data_comparison_give_float_batches() -> None:
    augment = Augment(crop=4, flip=0.5, randaugment=(2, 9), erase=0.25)
    module = data_pipeline.Noise(8, batch_size=4, val_fraction=0.0, augment=augment)
    module.setup("fit")
    batches = [module.transform(batch, train=True).images for batch in module.train_dataloader()]
    assert [batch.shape for batch in batches] == [(4, 3, 32, 32)] * 2
    image, _ = data_pipeline.PerImage(8, data_pipeline.per_image(augment))[0]
    assert (image.shape, image.dtype) == ((3, 32, 32), batches[0].dtype)


@pytest.mark.slow
def test_a_run_measures_in_a_process_for_each_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "growth.json"
    line = [
        "--pairs",
        "1",
        "--small",
        "8",
        "--batch",
        "1",
        "--rows",
        "defaults ViP",
        "--threads",
        "1",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["growth", *line])
    from benchmarks import growth

    monkeypatch.chdir(Path(harness.__file__).parents[1])
    assert growth.main() == 0
    runs = harness.json.loads(out.read_text())["runs"]
    assert runs["tuned"]["machine"]["allocator"] == harness.ALLOCATORS["tuned"]
    assert runs["default"]["machine"]["allocator"] == {}
    assert [found["name"] for found in runs["tuned"]["rows"]] == ["defaults ViP", "defaults ViP without biases"]


@pytest.mark.parametrize("system", ["CCN", "CvN", "LeViN"])
def test_published_bodies_written_plainly_give_the_same_logits(system: str) -> None:
    original = published.original(system)
    options = {"drop_path": 0.0} if original.family == "cct" else {}
    net = original.net(**original.init_args(original.script) | options).eval()
    plain, images = with_plain_layers(copy.deepcopy(net)), torch.randn(1, 3, *net.image_size)
    assert {type(part) for part in plain.modules()} != {type(part) for part in net.modules()}
    with torch.no_grad():
        torch.testing.assert_close(plain(images), net(images), rtol=1e-4, atol=1e-4)
