from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile

import pytest
import torch

from datamodules import DataError, TinyImageNet
from datamodules.base import Split
from datamodules.tiny_imagenet_classes import CLASSES
from tests.archives import Archive, encoded, pictures, serve, write_files, write_zip


class Small(TinyImageNet):
    """Expects as many images as the tests make."""

    per_class: ClassVar[dict[Split, int]] = {"train": 2, "test": 1}


@pytest.fixture
def by_hand(tiny_imagenet: Archive, tmp_path: Path) -> Path:
    """A root in which the archive lies unpacked."""
    root = tmp_path / "data"
    with ZipFile(tiny_imagenet.path) as archive:
        archive.extractall(root)
    return root


def opened(data: TinyImageNet, stage: str = "fit") -> TinyImageNet:
    data.prepare_data()
    data.setup(stage)
    return data


def test_the_classes_are_two_hundred_of_imagenet() -> None:
    assert len(CLASSES) == TinyImageNet.num_classes == 200
    assert all(wnid[0] == "n" and len(wnid) == 9 for wnid in CLASSES)
    # places in wnids.txt that others report
    assert [TinyImageNet.class_names[place] for place in (0, 63, 134, 185)] == [
        "Egyptian cat",
        "abacus",
        "apron",
        "altar",
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_labels_of_the_test_split_come_from_the_annotations(
    packed: bool, tiny_imagenet: Archive, by_hand: Path
) -> None:
    arguments = tiny_imagenet.init_args if packed else {"root": by_hand}
    data = opened(Small(**arguments), "test")
    lines = (by_hand / "tiny-imagenet-200/val/val_annotations.txt").read_text().splitlines()
    wnids = dict(line.split("\t")[:2] for line in lines)
    (batch,) = Small(**arguments, batch_size=200).test_dataloader()
    names = sorted(wnids)
    assert [list(CLASSES)[label] for label in batch.labels] == [wnids[names[index]] for index in batch.indices]
    # the colour of a picture tells its class
    expected = torch.from_numpy(pictures(list(range(200)), 64, 3, 5)).float().mean((1, 2))
    nearest = torch.cdist(batch.images.float().mean((2, 3)), expected).argmin(1)
    assert (nearest == batch.labels).float().mean() > 0.9
    assert len(data.class_names) == 200


def test_classes_of_train_are_those_of_test(tiny_imagenet: Archive) -> None:
    train = opened(Small(**tiny_imagenet.init_args, val_fraction=0.0, batch_size=400))
    (batch,) = train.train_dataloader()
    expected = torch.from_numpy(pictures(list(range(200)), 64, 3, 5)).float().mean((1, 2))
    coloured = (batch.images[:, 0] != batch.images[:, 1]).flatten(1).any(1)
    # the first of each class is grey in the file and has three channels here
    assert int(coloured.sum()) == 200
    nearest = torch.cdist(batch.images[coloured].float().mean((2, 3)), expected).argmin(1)
    assert (nearest == batch.labels[coloured]).float().mean() > 0.9


def test_nothing_is_moved_or_unpacked(tiny_imagenet: Archive, by_hand: Path) -> None:
    before = sorted(by_hand.rglob("*"))
    opened(Small(root=by_hand, cache=by_hand.parent / "cache"), "test")
    assert sorted(by_hand.rglob("*")) == before
    opened(Small(**tiny_imagenet.init_args), "fit")
    assert sorted(path.name for path in tiny_imagenet.folder.iterdir()) == ["cache", "tiny-imagenet-200.zip"]


def test_fitting_never_reads_the_test_images(by_hand: Path) -> None:
    (by_hand / "tiny-imagenet-200/val/images/val_7.JPEG").write_bytes(b"poison")
    (by_hand / "tiny-imagenet-200/val/val_annotations.txt").write_bytes(b"\xff")
    data = opened(Small(root=by_hand))
    list(data.train_dataloader())
    with pytest.raises(DataError, match="has no class for"):
        opened(Small(root=by_hand), "test")


def test_a_broken_image_is_named(by_hand: Path) -> None:
    (by_hand / "tiny-imagenet-200/val/images/val_7.JPEG").write_bytes(b"poison")
    with pytest.raises(DataError, match=r"cannot read the image .*val_7\.JPEG"):
        opened(Small(root=by_hand), "test")


@pytest.mark.parametrize("fault", ["checksum", "truncated", "unreachable", "missing"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    fault: str, tiny_imagenet: Archive, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    served = tiny_imagenet.folder if fault != "missing" else tmp_path
    checksum = "0" * 32 if fault == "checksum" else tiny_imagenet.checksum
    with serve(served, breaks_off=fault == "truncated") as address:
        mirror = "http://127.0.0.1:9/" if fault == "unreachable" else address
        with pytest.raises(DataError) as caught:
            TinyImageNet(root=root, checksum=checksum, mirror=mirror).prepare_data()
    lines = str(caught.value).splitlines()
    assert len(lines) <= 4
    assert "tiny-imagenet-200.zip" in lines[0]
    assert "experiments/overlays/digits.yaml" in lines[-1]
    assert not root.exists()


def test_it_is_downloaded(tiny_imagenet: Archive, tmp_path: Path) -> None:
    with serve(tiny_imagenet.folder) as address:
        data = opened(TinyImageNet(root=tmp_path / "data", checksum=tiny_imagenet.checksum, mirror=address))
    assert len(data.train_indices) == 360
    assert data.val_indices.tolist() == sorted(set(range(400)) - set(data.train_indices.tolist()))


def test_an_archive_by_hand_of_another_checksum_is_refused(tiny_imagenet: Archive) -> None:
    with pytest.raises(DataError, match="is damaged or another file"):
        opened(TinyImageNet(root=tiny_imagenet.folder))


def test_an_incomplete_folder_is_refused(by_hand: Path) -> None:
    (by_hand / "tiny-imagenet-200/train/n02124075/images/n02124075_1.JPEG").unlink()
    with pytest.raises(DataError, match="has 399 images, not 2 of each class"):
        opened(Small(root=by_hand))


FOLDER = "tiny-imagenet-200"
IMAGE = encoded(pictures([0], 64, 3, 0)[0])
WNIDS = "\n".join(CLASSES).encode()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({f"{FOLDER}/wnids.txt": b"n00000001\n", f"{FOLDER}/train/n1/images/a.JPEG": IMAGE}, "does not list the 200"),
        ({f"{FOLDER}/wnids.txt": WNIDS, f"{FOLDER}/train/n1/images/a.JPEG": IMAGE}, "of the class 'n1'"),
        ({f"{FOLDER}/train/n02124075/images/a.JPEG": IMAGE}, r"wnids\.txt"),
        ({"../train/n1/images/a.JPEG": IMAGE}, "not to be trusted"),
    ],
)
def test_an_archive_of_another_content_is_refused(files: dict[str, bytes], reason: str, tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "tiny-imagenet-200.zip", files)
    with pytest.raises(DataError, match=reason):
        opened(TinyImageNet(root=tmp_path, checksum=archive.checksum))


def test_an_image_without_annotation_is_named(tmp_path: Path) -> None:
    files = {"wnids.txt": WNIDS, "val/val_annotations.txt": b"", "val/images/val_0.JPEG": IMAGE}
    write_files(tmp_path / FOLDER, files)
    with pytest.raises(DataError, match=r"has no class for .*val_0\.JPEG"):
        Small(root=tmp_path).setup("test")
