import os
import shutil
from pathlib import Path

import pytest
import torch

from datamodules import DataError, ImageFolder
from tests.archives import encoded, pictures, write_files, write_image_folder

PICTURE = encoded(pictures([0], 20, 3, 0)[0], "PNG")


def opened(root: Path, stage: str | None = None, **arguments: object) -> ImageFolder:
    data = ImageFolder(root=root, **({"image_size": 16} | arguments))  # type: ignore[arg-type]
    data.prepare_data()
    data.setup(stage)
    return data


def positions(data: ImageFolder) -> set[int]:
    return set(torch.cat([batch.indices for batch in data.test_dataloader()]).tolist())


def test_classes_are_named_after_folders(image_folder: Path) -> None:
    data = ImageFolder(root=image_folder)
    assert data.class_names == ("ant", "bee", "cow")
    assert data.num_classes == 3
    assert (data.image_size, data.channels) == ((64, 64), 3)


def test_without_split_folders_a_fixed_fifth_is_the_test_split(image_folder: Path) -> None:
    data, other = opened(image_folder), opened(image_folder, seed=3, split_seed=4, val_fraction=0.2)
    assert positions(data) == positions(other)
    assert torch.cat([batch.labels for batch in data.test_dataloader()]).bincount().tolist() == [2, 2, 2]
    everything = [set(data.train_indices.tolist()), set(data.val_indices.tolist()), positions(data)]
    assert sum(map(len, everything)) == len(set.union(*everything)) == 30


def test_split_folders_are_what_their_names_say(tmp_path: Path) -> None:
    for split, count in (("train", 8), ("val", 3), ("test", 2)):
        write_image_folder(tmp_path / split, count)
    data = opened(tmp_path)
    assert len(data.train_indices) == 24
    assert len(data.val_indices) == 9
    assert len(positions(data)) == 6
    assert data.split()["val_from"] == "val"
    assert len(torch.cat([batch.labels for batch in data.val_dataloader()])) == 9


def test_a_missing_split_is_cut_out_of_train(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", 10)
    write_image_folder(tmp_path / "test", 2)
    data = opened(tmp_path)
    assert (len(data.train_indices), len(data.val_indices), len(positions(data))) == (27, 3, 6)
    shutil.rmtree(tmp_path / "test")
    write_image_folder(tmp_path / "val", 2)
    data = opened(tmp_path)
    assert (len(data.train_indices), len(data.val_indices), len(positions(data))) == (24, 6, 6)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_image_folder(tmp_path, 5, ("train", "car", "bus"))
    assert ImageFolder(root=tmp_path).class_names == ("bus", "car", "train")


def test_a_misnamed_split_is_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train")
    write_image_folder(tmp_path / "valid")
    with pytest.raises(DataError, match=r"valid is not read: name it `val`"):
        ImageFolder(root=tmp_path)


def test_hidden_and_other_files_are_passed_over_and_depth_is_not_limited(image_folder: Path) -> None:
    write_files(
        image_folder,
        {"ant/.DS_Store": b"", "ant/._001.png": b"", "ant/notes.txt": b"", "ant/a/b/c.PNG": PICTURE, ".git/x.png": b""},
    )
    data = opened(image_folder)
    assert data.num_classes == 3
    assert len(data.train_indices) + len(data.val_indices) + len(positions(data)) == 31


@pytest.mark.parametrize(("size", "channels"), [(16, 3), ((12, 30), 1), ([9, 8], 3)], ids=str)
def test_sizes_and_channels_are_arguments(size: int, channels: int, image_folder: Path) -> None:
    data = opened(image_folder, image_size=size, channels=channels)
    expected = (size, size) if isinstance(size, int) else tuple(size)
    assert data.image_size == expected
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape[1:] == (channels, *expected)
    assert data.transform(batch, train=False).images.abs().max() <= 1.00001


@pytest.mark.parametrize("arguments", [{"image_size": 0}, {"channels": 2}, {"image_size": (8, -1)}], ids=str)
def test_impossible_arguments_are_refused(arguments: dict[str, int], image_folder: Path) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageFolder(root=image_folder, **arguments)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_broken_image_is_named_in_one_line(in_memory: bool, image_folder: Path) -> None:
    for name in ("004.png", "005.png"):
        (image_folder / "bee" / name).write_bytes(PICTURE[:60])
    with pytest.raises(DataError) as caught:
        list(opened(image_folder, "fit", in_memory=in_memory, val_fraction=0.0).train_dataloader())
    assert "cannot read the image" in str(caught.value)
    assert "bee/00" in str(caught.value)
    assert "\n" not in str(caught.value)
    cache = image_folder / ".cache"
    assert not cache.exists() or list(cache.iterdir()) == []


def test_fitting_never_reads_a_test_image(image_folder: Path) -> None:
    names = sorted(path.relative_to(image_folder) for path in image_folder.rglob("*.png"))
    for place in positions(opened(image_folder, in_memory=False)):
        (image_folder / names[place]).write_bytes(b"poison")
    list(opened(image_folder, "fit").train_dataloader())
    with pytest.raises(DataError, match="cannot read the image"):
        opened(image_folder, "test")


def test_changed_added_and_removed_images_are_noticed(image_folder: Path) -> None:
    def colour() -> float:
        data = opened(image_folder, "fit", val_fraction=0.0)
        return float(torch.cat([batch.images for batch in data.train_dataloader()]).float().mean())

    seen = [colour(), colour()]
    for path in image_folder.glob("ant/*.png"):
        path.write_bytes(PICTURE)
        os.utime(path, ns=(1, 1))
    seen.append(colour())
    (image_folder / "bee" / "000.png").unlink()
    seen.append(colour())
    write_files(image_folder, {"bee/new.png": PICTURE})
    seen.append(colour())
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4
    assert len(list((image_folder / ".cache").iterdir())) == 1


def test_two_sizes_share_a_cache_folder(image_folder: Path) -> None:
    opened(image_folder, "fit")
    opened(image_folder, "fit", image_size=20)
    assert len(list((image_folder / ".cache").iterdir())) == 2


@pytest.mark.parametrize("case", ["nothing", "file", "one class", "empty class", "new class"])
def test_a_folder_that_cannot_be_learnt_from_is_refused_in_a_few_lines(case: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    if case == "file":
        root.write_text("")
    elif case == "one class":
        write_image_folder(root, 2, ("bee",))
    elif case == "empty class":
        (write_image_folder(root, 5) / "dog").mkdir()
    elif case == "new class":
        write_image_folder(root / "train", 5)
        write_image_folder(root / "test", 5, ("bee", "dog"))
    reason = {"nothing": "is not a folder", "file": "is not a folder", "one class": "at least two class folders"}
    with pytest.raises(DataError, match=reason.get(case, "dog")) as caught:
        opened(root)
    assert len(str(caught.value).splitlines()) <= 4
