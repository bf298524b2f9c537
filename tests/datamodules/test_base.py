"""Laws of every datamodule, and Lightning's part in them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

import datamodules
from datamodules import CIFAR10, Augment, Batch, Digits, ImageDataModule, ImageFolder, TinyImageNet
from tests.archives import Archive

ALL = [
    value
    for value in (getattr(datamodules, name) for name in datamodules.__all__)
    if isinstance(value, type) and issubclass(value, ImageDataModule) and value is not ImageDataModule
]
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


@pytest.fixture
def sources(cifar10: Archive, tiny_imagenet: Archive, image_folder: Path) -> dict[type, dict[str, Any]]:
    """Arguments under which each datamodule finds its files."""
    return {
        CIFAR10: cifar10.init_args,
        TinyImageNet: tiny_imagenet.init_args,
        Digits: {},
        ImageFolder: {"root": image_folder, "image_size": (16, 20)},
    }


def opened(data: ImageDataModule, stage: str = "fit") -> ImageDataModule:
    data.prepare_data()
    data.setup(stage)
    return data


def test_this_file_knows_every_datamodule(sources: dict[type, dict[str, Any]]) -> None:
    assert set(ALL) == set(sources)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not ImageFolder])
def test_facts_are_known_without_any_file(kind: type[ImageDataModule], tmp_path: Path) -> None:
    data = kind(root=tmp_path / "nothing")
    assert len(data.class_names) == data.num_classes == len(set(data.class_names))
    assert len(data.mean) == len(data.std) == data.channels
    assert len(data.image_size) == 2
    assert data.valid_augmentations <= set(Augment.__dataclass_fields__)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("kind", ALL)
def test_splits_are_apart_complete_and_saved(kind: type[ImageDataModule], sources: dict[type, dict[str, Any]]) -> None:
    data = opened(kind(**sources[kind], batch_size=16))
    train, val = data.train_indices.tolist(), data.val_indices.tolist()
    assert not set(train) & set(val)
    assert len(val) == round(0.1 * (len(train) + len(val)))
    split = json.loads(json.dumps(data.split()))
    assert (split["train"], split["val"]) == (train, val)
    assert sorted(torch.cat([batch.indices for batch in data.train_dataloader()]).tolist()) == train
    loader = data.val_dataloader()
    assert torch.cat([batch.indices for batch in loader]).tolist() == val
    again = opened(kind(**sources[kind], seed=5, batch_size=9))
    assert again.split()["sha256"] == split["sha256"]
    assert opened(kind(**sources[kind], split_seed=5)).split()["sha256"] != split["sha256"]


@pytest.mark.parametrize("kind", ALL)
def test_labels_and_images_fit_the_facts(kind: type[ImageDataModule], sources: dict[type, dict[str, Any]]) -> None:
    data = opened(kind(**sources[kind], batch_size=16), "test")
    for images, labels, indices in data.test_dataloader():
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (data.channels, *data.image_size)
        assert labels.dtype == indices.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < data.num_classes


@pytest.mark.parametrize("kind", ALL)
def test_in_memory_and_from_workers_batches_are_the_same(
    kind: type[ImageDataModule], sources: dict[type, dict[str, Any]]
) -> None:
    here = opened(kind(**sources[kind], batch_size=64)).train_dataloader()
    there = opened(kind(**sources[kind], batch_size=64, in_memory=False, num_workers=1)).train_dataloader()
    for one, other in zip(here, there, strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ALL)
def test_without_memory_nothing_is_written(kind: type[ImageDataModule], sources: dict[type, dict[str, Any]]) -> None:
    root = Path(sources[kind].get("root", "data"))
    before = sorted(root.rglob("*"))
    data = opened(kind(**sources[kind], in_memory=False))
    next(iter(data.train_dataloader()))
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("kind", ALL)
def test_fractions_are_nested_and_leave_validation_alone(
    kind: type[ImageDataModule], sources: dict[type, dict[str, Any]]
) -> None:
    whole, half, tenth = (opened(kind(**sources[kind], fraction=part)) for part in (1.0, 0.5, 0.1))
    assert set(tenth.train_indices.tolist()) <= set(half.train_indices.tolist()) < set(whole.train_indices.tolist())
    assert half.val_indices.equal(whole.val_indices)
    for part, data in ((0.5, half), (0.1, tenth)):
        # every class keeps an image
        assert len(data.train_indices) == max(data.num_classes, round(part * len(whole.train_indices)))


def test_validation_can_be_left_out() -> None:
    data = opened(Digits(val_fraction=0.0))
    assert data.val_dataloader() == []
    assert len(data.train_indices) == 1438


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("val_fraction", 1.0),
        ("val_fraction", -0.1),
        ("fraction", 0.0),
        ("fraction", 1.1),
        ("num_workers", -1),
        ("mean", (0.5, 0.5)),
        ("std", (0.0,)),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*got") as caught:
        Digits(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="batchsize"):
        CIFAR10(batchsize=3)


def test_mean_and_std_can_be_the_published_ones() -> None:
    data = opened(Digits(mean=[0.5], std=[0.5]))
    batch = next(iter(data.train_dataloader()))
    images = data.transform(batch, train=False).images
    torch.testing.assert_close(images, batch.images / 127.5 - 1, atol=1e-6, rtol=0)


def test_augmentation_depends_on_seed_epoch_and_image_alone() -> None:
    augment = Augment(crop=1, rotate=10, erase=0.5)

    def by_image(batch_size: int, **changes: int) -> dict[int, Tensor]:
        data = opened(Digits(augment=augment, batch_size=batch_size, seed=changes.get("seed", 0)))
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(changes.get("epoch", 0))
        batches = [data.transform(batch, train=True) for batch in loader]
        images = torch.cat([batch.images for batch in batches])
        return dict(zip(torch.cat([batch.indices for batch in batches]).tolist(), images, strict=True))

    first = by_image(128)
    assert all(image.equal(first[index]) for index, image in by_image(100).items())
    for changes in ({"seed": 1}, {"epoch": 1}):
        assert sum(not image.equal(first[index]) for index, image in by_image(128, **changes).items()) > 1000


def test_what_a_data_set_does_not_allow_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = opened(Digits(augment=Augment(flip=1.0, erase=0.5)))
    assert data.pipeline.augment == Augment(erase=0.5)
    assert [r.message for r in caplog.records] == [
        "Digits does without augment.flip: it would change what its labels say"
    ]


class Net(LightningModule):
    """Remembers what it saw."""

    def __init__(self, data: ImageDataModule) -> None:
        super().__init__()
        size = data.channels * data.image_size[0] * data.image_size[1]
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(size, data.num_classes))
        self.seen: dict[str, list[Batch]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch)
        return nn.functional.cross_entropy(self.net(batch.images), batch.labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen["predict"].append(batch)
        return batch.indices

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(tmp_path: Path, callbacks: list[Callback] | None = None, **arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **arguments,
    )


def test_lightning_augments_training_and_nothing_else(tmp_path: Path) -> None:
    data = Digits(augment=Augment(crop=1, rotate=10))
    net = Net(data)
    lightning = trainer(tmp_path, max_epochs=1)
    lightning.fit(net, data)
    lightning.test(net, data, verbose=False)
    lightning.predict(net, data)
    plain = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    plain["predict"] = plain["test"]
    for stage, loader in plain.items():
        raw = {int(i): image for batch in loader for i, image in zip(batch.indices, batch.images, strict=True)}
        # Lightning looks at a few batches before it begins
        batches = net.seen[stage][-len(loader) :]
        same = [
            image.equal(data.pipeline.normalise(raw[int(index)][None])[0])
            for batch in batches
            for index, image in zip(batch.indices, batch.images, strict=True)
        ]
        assert len(same) == len(raw)
        assert sum(same) < 30 if stage == "train" else all(same)


def test_each_epoch_has_its_own_order(tmp_path: Path) -> None:
    data = Digits(batch_size=256)
    net = Net(data)
    trainer(tmp_path, max_epochs=2).fit(net, data)
    seen = torch.cat([batch.indices for batch in net.seen["train"]]).chunk(2)
    assert not seen[0].equal(seen[1])
    assert seen[0].sort().values.equal(seen[1].sort().values)


def test_overfitting_takes_the_same_batches_again(tmp_path: Path) -> None:
    data = Digits(batch_size=64)
    net = Net(data)
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(net, data)
    seen = [batch.indices.tolist() for batch in net.seen["train"]]
    assert seen[:2] == seen[2:]


class StopAfter(Callback):
    """Ends a run in mid-epoch, as a time limit would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")
            raise KeyboardInterrupt


@pytest.mark.parametrize(("steps", "num_workers"), [(2, 0), (6, 0), (9, 0), (9, 2)])
def test_a_run_resumed_in_mid_epoch_sees_what_it_would_have_seen(steps: int, num_workers: int, tmp_path: Path) -> None:
    augment = Augment(crop=1, rotate=10, erase=0.3)

    def fresh() -> tuple[Digits, Net]:
        data = Digits(batch_size=256, augment=augment, num_workers=num_workers)
        torch.manual_seed(0)
        return data, Net(data)

    data, whole = fresh()
    trainer(tmp_path, max_epochs=3).fit(whole, data)
    data, stopped = fresh()
    with pytest.raises(SystemExit):
        trainer(tmp_path, [StopAfter(steps)], max_epochs=3).fit(stopped, data)
    data, resumed = fresh()
    trainer(tmp_path, max_epochs=3).fit(resumed, data, ckpt_path=tmp_path / "stopped.ckpt")
    assert len(stopped.seen["train"]) == steps
    seen = stopped.seen["train"] + resumed.seen["train"]
    assert len(seen) == len(whole.seen["train"]) == 18
    for one, other in zip(seen, whole.seen["train"], strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert one.equal(other)


def test_a_run_resumed_between_epochs_sees_what_it_would_have_seen(tmp_path: Path) -> None:
    data = Digits(batch_size=256)
    whole, stopped, resumed = Net(data), Net(data), Net(data)
    trainer(tmp_path, max_epochs=3, limit_train_batches=4).fit(whole, data)
    first = trainer(tmp_path, max_epochs=1, limit_train_batches=4)
    first.fit(stopped, data)
    first.save_checkpoint(tmp_path / "first.ckpt")
    data = Digits(batch_size=256)
    trainer(tmp_path, max_epochs=3, limit_train_batches=4).fit(resumed, data, ckpt_path=tmp_path / "first.ckpt")
    seen = [batch.indices.tolist() for batch in stopped.seen["train"] + resumed.seen["train"]]
    assert seen == [batch.indices.tolist() for batch in whole.seen["train"]]


def test_it_is_a_datamodule_of_lightning() -> None:
    assert all(issubclass(kind, LightningDataModule) for kind in ALL)
    assert str(opened(Digits())) == "Digits: 10 classes, 1 x 8 x 8"
