"""The runner of the CIFAR-10 and Tiny ImageNet tables: its cells, what they cost, and that they are filled once."""

import json
from pathlib import Path

import pytest

from benchmarks import digits, photographs
from benchmarks.digits import Cell, fit_arguments


@pytest.mark.parametrize("data", photographs.DATA)
def test_a_table_has_every_system_with_three_seeds_on_its_own_data(data: str) -> None:
    cells = photographs.cells(data, digits.SEEDS)
    assert len({cell.name for cell in cells}) == 29 * 3
    arguments = fit_arguments(cells[0], Path("runs"))
    files = [argument for argument in arguments if argument.endswith(".yaml")]
    assert all((digits.ROOT / file).is_file() for file in files)
    assert ("experiments/overlays/tiny_imagenet.yaml" in files) == (data == "tiny_imagenet")
    assert not any("digits" in argument for argument in arguments)


def test_the_cost_is_that_of_the_net_at_the_size_of_the_data() -> None:
    import vix
    from vix.measure import summary

    flops = summary(vix.CCT(image_size=32, num_classes=10))["flops"]
    assert photographs.operations("cct", "cifar10") == 3 * flops * 45_000 * photographs.epochs()
    assert photographs.operations("cct", "tiny_imagenet") > 2 * photographs.operations("cct", "cifar10")


def test_what_is_done_costs_nothing_and_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []

    def train(cell: Cell, work: Path, threads: int) -> Path:
        trained.append(cell.name)
        work.mkdir(parents=True)
        (work / "results.json").write_text(json.dumps({"test": {"test/top1": 0.5}, "wall_seconds": 4100.0}))
        return work

    monkeypatch.setattr(digits, "train", train)
    places = ["--results", str(tmp_path / "r"), "--work", str(tmp_path / "w")]
    options = ["cifar10", "--only", "cct", *places]
    assert photographs.main([*options, "--limit", "2"]) == 0
    assert "OVER" not in capsys.readouterr().out
    assert photographs.main([*options, "--list", "--tflops", "20"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told[:3]] == [["done", trained[0]], ["done", trained[1]], ["-", "cct-100-seed2"]]
    hours = photographs.operations("cct", "cifar10") / 20e12 / 3600
    assert told[3].startswith("1 trainings of 100 epochs")
    assert told[3].endswith(f"{hours:,.0f} hours at 20 TFLOPS")
    assert photographs.main(options) == 0
    assert trained == ["cct-100-seed0", "cct-100-seed1", "cct-100-seed2"]
