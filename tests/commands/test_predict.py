"""Predictions for image files: whatever Pillow reads, wherever it lies, and a broken file stops nothing."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import main
import vix
from datamodules import CIFAR10, Digits, ImageFiles
from tests.commands.runs import digits_net, logits, run_with
from tests.nets import tiny
from vix.training.runs import Run


def predict(*arguments: str | Path) -> int:
    return main.main(["predict", *map(str, arguments)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def noise(path: Path, mode: str = "RGB", size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def colour(tmp_path: Path) -> Run:
    net = tiny(vix.ViT, image_size=32, num_classes=10, patch_size=8).eval()
    return run_with(net, tmp_path, {"class_path": "datamodules.CIFAR10", "init_args": {}})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of many kinds at several depths, among them two broken ones, a text and a hidden file."""
    folder = tmp_path / "photos"
    for place, name in enumerate(["a.png", "b.jpg", "deep/er/c.webp", "deep/d.tiff", "e.bmp", "f.gif", "g.PPM"]):
        noise(folder / name, size=(20 + place, 40), seed=place)
    noise(folder / "grey.png", "L")
    noise(folder / "palette.png", "P")
    noise(folder / "cut.jpg").write_bytes(noise(folder / "cut.jpg").read_bytes()[:200])
    (folder / "text.png").write_text("no image at all")
    (folder / "notes.txt").write_text("passed over")
    noise(folder / ".hidden.png")
    return folder


def test_a_folder_is_predicted_but_for_what_is_broken(
    colour: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(photos, "--ckpt_path", colour.folder, "--batch_size", 4) == 1
    table = rows(colour.folder / "predict_files.csv")
    good = ["a.png", "b.jpg", "deep/d.tiff", "deep/er/c.webp", "e.bmp", "f.gif", "g.PPM", "grey.png", "palette.png"]
    assert [row["path"] for row in table] == [str(photos / name) for name in good]
    content = json.loads((colour.folder / "predict_files.json").read_text())
    assert [each["path"] for each in content["failures"]] == [str(photos / name) for name in ("cut.jpg", "text.png")]
    for row, image in zip(table, content["images"], strict=True):
        assert row["path"] == image["path"]
        assert [row[f"class_{place}"] for place in range(1, 6)] == [top["class"] for top in image["top"]]
        shares = [float(row[f"probability_{place}"]) for place in range(1, 6)]
        assert shares == [top["probability"] for top in image["top"]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-5
    captured = capsys.readouterr()
    assert captured.out.startswith("9 images, ")
    lines = captured.err.splitlines()
    assert lines[0] == "2 of 11 files could not be read:"
    assert [str(photos / name) in line for name, line in zip(("cut.jpg", "text.png"), lines[1:], strict=True)] == [
        True,
        True,
    ]


def test_predictions_are_those_of_the_net_whatever_the_batch(colour: Run, photos: Path, tmp_path: Path) -> None:
    for batch in (1, 64):
        predict(photos, "--ckpt_path", colour.folder, "--batch_size", batch, "--out", tmp_path / str(batch))
    for one, other in zip(rows(tmp_path / "1.csv"), rows(tmp_path / "64.csv"), strict=True):
        for name, cell in one.items():
            # Products over other sizes of batch round otherwise.
            same = pytest.approx(float(other[name]), abs=2e-6) if name.startswith("probability") else other[name]
            assert (float(cell) if name.startswith("probability") else cell) == same
    net = tiny(vix.ViT, image_size=32, num_classes=10, patch_size=8).eval()
    names = CIFAR10.class_names
    for row in rows(tmp_path / "64.csv"):
        with Image.open(row["path"]) as image:
            fitted = image.convert("RGB")
        if fitted.size != (32, 32):
            continue
        pixels = torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(each)[:, None, None] for each in ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)))
        best = logits(net, (pixels - mean) / std).softmax(-1)[0].topk(5)
        assert [row[f"class_{place}"] for place in range(1, 6)] == [names[each] for each in best.indices]
        assert [float(row[f"probability_{place}"]) for place in range(1, 6)] == pytest.approx(
            best.values.tolist(), abs=2e-6
        )


def test_files_give_what_the_test_split_gives(tmp_path: Path) -> None:
    run = run_with(digits_net(), tmp_path)
    assert predict("--ckpt_path", run.folder) == 0
    split = rows(run.folder / "predict.csv")
    data = Digits()
    data.setup("test")
    (tmp_path / "scans").mkdir()
    for batch in data.test_dataloader():
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            Image.fromarray(image[0].numpy()).save(tmp_path / "scans" / f"{index:04}.png")
    assert predict(tmp_path / "scans", "--ckpt_path", run.folder) == 0
    files = rows(run.folder / "predict_files.csv")
    assert [int(Path(row["path"]).stem) for row in files] == [int(row["index"]) for row in split]
    assert [row["class_1"] for row in files] == [row["prediction"] for row in split]
    shares = [[float(row[name]) for row in table] for table, name in ((files, "probability_1"), (split, "probability"))]
    assert shares[0] == pytest.approx(shares[1], abs=2e-6)


@pytest.mark.parametrize(
    ("paths", "count"),
    [(["a.png"], 1), (["*.png"], 4), (["**/*.webp"], 1), (["a.png", "*.jpg", "a.png"], 3), (["deep"], 2)],
)
def test_a_file_a_glob_and_a_folder_are_found_once_each(paths: list[str], count: int, photos: Path) -> None:
    files = ImageFiles([str(photos / path) for path in paths], image_size=(8, 8), channels=3, mean=[0] * 3, std=[1] * 3)
    assert len(files) == len(set(files.names)) == count


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        (["absent.png"], "absent.png: no such file, folder or glob with an image"),
        (["empty"], "empty: holds no image"),
        (["*.nothing"], "*.nothing: no such file, folder or glob with an image"),
    ],
)
def test_a_path_without_images_exits_1_and_writes_nothing(
    paths: list[str], told: str, colour: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert predict(*(tmp_path / path for path in paths), "--ckpt_path", colour.folder) == 1
    assert capsys.readouterr().err == f"{tmp_path / told}\n"
    assert not list(colour.folder.glob("predict*"))


def test_an_explicit_file_that_cannot_be_read_is_listed(
    colour: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    assert predict(tmp_path / "notes.txt", "--ckpt_path", colour.folder) == 1
    assert "1 of 1 files could not be read" in capsys.readouterr().err
    assert rows(colour.folder / "predict_files.csv") == []
    assert json.loads((colour.folder / "predict_files.json").read_text())["images"] == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--ckpt_path", "none"], "no such file or folder"),
        (["--ckpt_path", "RUN", "--device", "toaster"], "--device toaster"),
    ],
)
def test_a_wrong_option_exits_2(
    options: list[str], told: str, colour: Run, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(colour.folder) if option == "RUN" else option for option in options]
    assert predict(photos, *options) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert len(captured.err.splitlines()) == 1


def test_fewer_classes_than_asked_for_are_all_listed(tmp_path: Path, image_folder: Path) -> None:
    data: dict[str, Any] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": str(image_folder), "image_size": 16},
    }
    net = tiny(vix.ViT, num_classes=3, patch_size=8).eval()
    run = run_with(net, tmp_path, data)
    assert predict(image_folder, "--ckpt_path", run.folder, "--top", 9) == 0
    table = rows(run.folder / "predict_files.csv")
    assert len(table) == 30
    assert list(table[0]) == ["path", *(f"{what}_{n}" for n in (1, 2, 3) for what in ("class", "probability"))]
    assert sum(float(table[0][f"probability_{n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
