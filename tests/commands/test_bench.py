import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vix.attention import Performer, SoftmaxAttention
from vix.commands import bench
from vix.commands.bench import run
from vix.commands.bench.candidates import Candidate, grid_for, parse, prepare, softmax_system, with_baselines
from vix.commands.bench.findings import Crossing, crossing, growth_exponent, refusal, sentence
from vix.commands.bench.report import FULL, OK, Row, crossings, growth, table
from vix.commands.bench.roofline import Product, Products, Roofline
from vix.commands.bench.timing import interleave, quartiles, unless_out_of_memory
from vix.systems import SYSTEMS, ViN, ViP, ViT

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = {"dim": 8, "depth": 1, "heads": 2, "dim_head": 4, "mlp_dim": 8}
TINY_LINE = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]


def row(candidate: str, tokens: int, ms: float | None, *, softmax: str = "", memory: int | None = None) -> Row:
    return Row(
        candidate=candidate,
        kind="system",
        softmax=softmax,
        baselines=("fused", "explicit"),
        tokens=tokens,
        sequence=tokens,
        batch=2,
        mode="train",
        precision="fp32",
        device="cpu",
        compiled=False,
        outcome=FULL if ms is None else OK,
        ms=ms,
        ms_q1=ms,
        ms_q3=ms,
        images_per_s=None if ms is None else 2e3 / ms,
        memory=memory,
        memory_kind="kept for backward",
    )


# candidates


def test_a_name_may_carry_options_and_kernels_go_by_their_short_name() -> None:
    assert parse("vin:num_landmarks=256,position=rope") == Candidate(
        ViN, (("num_landmarks", 256), ("position", "rope"))
    )
    assert parse("Softmax") == parse("SoftmaxAttention") == Candidate(SoftmaxAttention)
    assert parse("Performer:as_published=True").label == "Performer(as_published=True)"


@pytest.mark.parametrize(
    ("text", "words"),
    [("ViQ", "did you mean Vi"), ("zebra", "there are ViT"), ("ViN:landmarks=3", "num_landmarks"), ("ViN:x", "'x'")],
)
def test_a_wrong_name_or_option_is_refused_in_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([text, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_softmax_always_comes_twice_and_once_only() -> None:
    labels = [candidate.label for candidate in with_baselines([parse("ViP"), parse("ViT"), parse("FNet")])]
    assert labels == ["ViT, fused softmax", "ViT, explicit softmax", "ViP", "FNet"]
    labels = [candidate.label for candidate in with_baselines([parse("Nystrom")])]
    assert labels == ["SoftmaxAttention, fused softmax", "SoftmaxAttention, explicit softmax", "NystromAttention"]


def test_options_of_the_body_hold_for_softmax_too() -> None:
    fused, explicit = parse("ViN:num_landmarks=9,position=rope").baselines
    assert fused == Candidate(ViT, (("position", "rope"),), "fused")
    assert explicit.softmax == "explicit"


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_is_compared_with_a_softmax_system_of_its_own_family(system: str) -> None:
    twin = softmax_system(system)
    assert twin in SYSTEMS
    assert twin.endswith("T")
    assert system.startswith("Hybrid") == twin.startswith("Hybrid")


@pytest.mark.parametrize(("tokens", "grid"), [(1024, (32, 32)), (512, (16, 32)), (7, (1, 7)), (12, (3, 4))])
def test_a_grid_is_as_square_as_its_tokens_allow(tokens: int, grid: tuple[int, int]) -> None:
    assert grid_for(tokens) == grid


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_gets_the_tokens_that_were_asked_for(system: str) -> None:
    work = prepare(
        Candidate(SYSTEMS[system]), 2048, mode="infer", precision="fp32", device=CPU, batch=1, sizes={"depth": 1}
    )
    assert work.sequence in (2048, 2049)


def test_explicit_softmax_writes_its_matrices_out() -> None:
    for softmax in ("fused", "explicit"):
        work = prepare(
            Candidate(ViT, softmax=softmax), 16, mode="train", precision="fp32", device=CPU, batch=1, sizes=TINY
        )
        kernels = [module for module in work.module.modules() if isinstance(module, SoftmaxAttention)]
        assert [kernel.fused for kernel in kernels] == [softmax == "fused"]


@pytest.mark.parametrize("name", ["ViP", "Performer"])
def test_a_training_step_leaves_gradients_and_a_reset_drops_them(name: str) -> None:
    work = prepare(parse(name), 16, mode="train", precision="bf16", device=CPU, batch=2, sizes=TINY)
    work.step()
    with_gradients = [tensor for tensor in (*work.module.parameters(), *work.inputs) if tensor.requires_grad]
    assert with_gradients
    assert all(tensor.grad is not None for tensor in with_gradients)
    work.reset()
    assert all(tensor.grad is None for tensor in with_gradients)


# clocks


def test_steps_take_turns_and_do_not_always_follow_the_same_one() -> None:
    order: list[str] = []
    between: list[int] = []

    def step(name: str) -> float:
        order.append(name)
        return float(len(order))

    times = interleave(
        [lambda: step("a"), lambda: step("b")], rounds=3, seconds=60, between=lambda: between.append(len(order))
    )
    assert "".join(order) == "abbaab"
    assert times == [[1.0, 4.0, 5.0], [2.0, 3.0, 6.0]]
    assert between == [2, 4, 6]


def test_a_time_limit_leaves_the_fewest_rounds() -> None:
    assert interleave([lambda: 1.0], rounds=50, seconds=0, fewest=3) == [[1.0] * 3]


def test_quartiles_are_those_of_the_sample() -> None:
    assert quartiles([1, 2, 3, 4, 5]) == (2, 3, 4)
    assert quartiles([7.0]) == (7, 7, 7)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_a_result(error: Exception) -> None:
    def full() -> float:
        raise error

    assert unless_out_of_memory(full) is None
    assert interleave([full, lambda: 1.0], rounds=2, seconds=60) == [None, [1.0, 1.0]]


def test_another_error_is_an_error() -> None:
    def broken() -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        unless_out_of_memory(broken)


@pytest.mark.slow
def test_an_allocation_beyond_the_machine_fails_instead_of_killing() -> None:
    # In a process of its own, since the limit holds for all of it.
    script = (
        "import torch; from vix.commands.bench.timing import bounded_memory, unless_out_of_memory\n"
        "with bounded_memory():\n"
        "    assert unless_out_of_memory(lambda: torch.empty(2**50, dtype=torch.uint8)) is None\n"
        "print(unless_out_of_memory(lambda: 'fits'))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "fits\n"


class Greedy(Performer):
    """Wants more than there is from 64 tokens on."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[-2] >= 64:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(q, k, v)


def test_a_candidate_without_memory_has_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vix.commands.bench.roofline.COPIED", 2**16)
    rows = []
    for tokens in (16, 64):
        rows += run.cell(
            with_baselines([Candidate(Greedy)]),
            tokens,
            mode="train",
            precision="fp32",
            device=CPU,
            batch=1,
            sizes={},
            rounds=3,
            seconds=60,
        )
    assert [(row.candidate.split(",")[0], row.tokens, row.outcome) for row in rows] == [
        ("SoftmaxAttention", 16, OK),
        ("SoftmaxAttention", 16, OK),
        ("Greedy", 16, OK),
        ("SoftmaxAttention", 64, OK),
        ("SoftmaxAttention", 64, OK),
        ("Greedy", 64, FULL),
    ]
    assert any("Greedy (out of memory)" in said for said in crossings(rows))
    assert FULL in table(rows)


def test_a_size_that_a_candidate_cannot_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vix.commands.bench.roofline.COPIED", 2**16)
    (refused,) = run.cell(
        [Candidate(ViP, (("patch_size", 0),))],
        16,
        mode="infer",
        precision="fp32",
        device=CPU,
        batch=1,
        sizes=TINY,
        rounds=1,
        seconds=60,
    )
    assert refused.outcome.startswith("refused: ")
    assert refused.outcome in table([refused])


# the roofline


def test_products_are_counted_by_their_shapes() -> None:
    with Products() as products:
        layer = nn.Linear(3, 5)
        layer(torch.zeros(2, 7, 3))
        torch.zeros(4, 6, 3) @ torch.zeros(4, 3, 2)
        torch.zeros(4, 6, 2).baddbmm_(torch.zeros(4, 6, 5), torch.zeros(4, 5, 2))
    assert products.counts == {
        Product(1, 14, 3, 5, torch.float32): 1,
        Product(4, 6, 3, 2, torch.float32): 1,
        Product(4, 6, 5, 2, torch.float32): 1,
    }


def test_a_linear_map_counts_the_same_as_a_product_and_as_a_convolution_of_one_pixel() -> None:
    x, weight = torch.zeros(1, 3, 14, 1, requires_grad=True), torch.zeros(5, 3, 1, 1, requires_grad=True)
    with Products() as convolved:
        nn.functional.conv2d(x, weight).sum().backward()
    with Products() as multiplied:
        nn.functional.linear(x.flatten(1).view(14, 3), weight.flatten(1)).sum().backward()
    flops = {product.flops for product in multiplied.counts}
    assert {product.flops for product in convolved.counts} == flops
    assert convolved.counts.total() == multiplied.counts.total() == 3
    assert Product(1, 14, 3, 5, torch.float32) in convolved.counts
    assert Product(1, 14, 5, 3, torch.float32) in convolved.counts


def test_a_step_is_bounded_by_its_operations_or_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vix.commands.bench.roofline.COPIED", 2**16)
    small, large = Product(1, 8, 8, 8, torch.float32), Product(2, 16, 16, 16, torch.float32)
    roofline = Roofline(CPU, [small, large])
    for _ in range(20):
        roofline.probe()
    assert roofline.probes == 15
    roofline.best, roofline.best_copy = {small: 1.0, large: 2.0}, 1.0
    rate = (3 * small.flops + large.flops) / (3 * 1 + 2)
    assert roofline.matrix_rate({small: 3, large: 1}) == rate
    assert roofline.bandwidth == 2 * 2**16
    assert roofline.seconds(round(10 * rate), 1, {small: 3, large: 1}) == pytest.approx(10, rel=1e-3)
    assert roofline.seconds(1, 20 * 2**16, {small: 3, large: 1}) == 10


# findings


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_a_growth_exponent_is_found_again(power: float) -> None:
    sizes = [64, 256, 1024, 4096]
    assert growth_exponent(sizes, [3 * n**power for n in sizes]) == pytest.approx(power, abs=1e-9)


def test_growth_needs_two_sizes_and_leaves_out_what_did_not_fit() -> None:
    assert growth_exponent([64], [1.0]) is None
    assert growth_exponent([64, 256], [1.0, math.inf]) is None
    assert growth_exponent([64, 256, 1024], [1.0, 4.0, math.inf]) == pytest.approx(1)


def test_curves_cross_where_straight_lines_of_logarithms_do() -> None:
    sizes = [64, 256, 1024]
    # n and n^2 / 512 meet at 512.
    found = crossing(sizes, [float(n) for n in sizes], [n * n / 512 for n in sizes])
    assert found.tokens == pytest.approx(512)
    assert (found.before, found.after, found.ratio) == (256, 1024, 2)


def test_a_contender_must_stay_cheaper_to_have_crossed() -> None:
    assert crossing([1, 2, 3, 4], [1, 9, 1, 1], [2, 2, 2, 2]).before == 2
    assert crossing([1, 2], [1.0, 9.0], [2.0, 3.0]) == Crossing(None, 2, None, 3 / 9)
    assert crossing([1, 2], [1.0, 2.0], [1.0, 2.0]).tokens is None
    assert crossing([8, 16], [1.0, 1.0], [2.0, 4.0]) == Crossing(8, None, 8, 4)
    with pytest.raises(ValueError, match="at least one"):
        crossing([], [], [])


def test_out_of_memory_loses_against_any_cost() -> None:
    assert crossing([1, 2], [3.0, 9.0], [1.0, math.inf]) == Crossing(2, 1, 2, math.inf)
    assert crossing([1, 2], [0.5, math.inf], [1.0, 9.0]) == Crossing(None, 2, None, 0)
    assert math.isnan(crossing([1], [math.inf], [math.inf]).ratio)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            Crossing(512.3, 256, 1024, 2.0),
            "ViP trains faster than S from n = 510 (between 256 and 1,024; at 4,096 by 2.00x)",
        ),
        (
            Crossing(64, None, 64, 1.5),
            "ViP trains faster than S from n = 64 (the smallest measured; at 4,096 by 1.50x)",
        ),
        (
            Crossing(4096, 1024, 4096, math.inf),
            "ViP trains faster than S from n = 4,096 (between 1,024 and 4,096; at 4,096 where S is out of memory)",
        ),
    ],
    ids=["between", "always", "full"],
)
def test_a_crossing_is_one_sentence(found: Crossing, said: str) -> None:
    assert sentence(found, "ViP", "S", "trains faster", 4096) == said


def test_who_does_not_cross_is_named_with_its_share() -> None:
    said = refusal({"ViP": 0.5, "ViN": 0.0, "ViL": math.nan}, "S", "trains faster", 1024)
    assert said.endswith("ViP (0.50x), ViN (out of memory), ViL (both out of memory)")
    assert "n = 1,024" in said


def test_rows_tell_growth_and_crossings() -> None:
    rows = [
        row(name, n, cost, softmax=softmax, memory=n)
        for n in (64, 256)
        for name, softmax, cost in (("fused", "fused", n * n / 128), ("explicit", "explicit", None), ("ViP", "", n))
    ]
    exponents = {(found["candidate"], found["cost"]): found["exponent"] for found in growth(rows)}
    assert exponents["ViP", "ms"] == pytest.approx(1)
    assert exponents["fused", "ms"] == pytest.approx(2)
    assert ("explicit", "ms") not in exponents
    said = crossings(rows)
    assert "fp32: ViP trains faster than fused from n = 128 (between 64 and 256; at 256 by 2.00x)" in said
    assert any("ViP trains faster than explicit from n = 64 (the smallest measured" in line for line in said)


# the command


def test_the_command_prints_and_writes_a_table_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vix.commands.bench.roofline.COPIED", 2**16)
    names = ["ViP", "FNet", "Performer:features=8"]
    line = [*names, "--tokens", "16", "64", "--rounds", "2", "--batch", "2", "--device", "cpu", "--out", str(tmp_path)]
    assert bench.main([*line, *TINY_LINE]) == 0
    printed = capsys.readouterr().out
    for name in ("ViT, fused softmax", "ViT, explicit softmax", "ViP", "FNet", "Performer(features=8)", "roofline"):
        assert name in printed

    results = json.loads((tmp_path / "results.json").read_text())
    assert {"cpu", "cores", "threads", "torch", "commit", "allocator"} <= results["machine"].keys()
    # (4 systems + 3 kernels) x 2 sizes x 2 modes
    assert len(results["rows"]) == 7 * 4
    for measured in results["rows"]:
        assert measured["outcome"] == OK
        assert measured["ms_q1"] <= measured["ms"] <= measured["ms_q3"]
        assert measured["images_per_s"] == pytest.approx(2e3 / measured["ms"])
        assert measured["flops"] > 0
        assert measured["roofline"] > 0
        assert (measured["memory"] is None) == (measured["mode"] == "infer")
    assert results["growth"]
    assert results["crossings"]
    with (tmp_path / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(results["rows"])
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {f"{kind}-{mode}-fp32.png" for kind in ("system", "kernel") for mode in ("train", "infer")}


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--device", "tpu", "--out", str(tmp_path)]) == 2
    assert "--device tpu" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["--rounds", "0"], ["--tokens", "-1"], ["--mode", "sleep"]])
def test_an_impossible_option_ends_with_the_usage(line: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(line)


BLOCKED = ["pytorch_lightning", "lightning", "wandb", "jsonargparse", "torchmetrics", "torchvision", "datamodules"]


@pytest.mark.slow
def test_it_runs_with_torch_and_einops_alone(tmp_path: Path) -> None:
    blocked = [*BLOCKED, "matplotlib"]
    script = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import runpy\n"
        f"sys.argv = ['bench', 'ViP', '--tokens', '16', '--rounds', '1', '--out', {str(tmp_path)!r}, *{TINY_LINE}]\n"
        "runpy.run_module('vix.commands.bench', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no plots: matplotlib is not installed" in done.stdout
    assert (tmp_path / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("line", [["main.py", "bench", "--help"], ["-m", "vix.commands.bench", "--help"]])
def test_help_loads_torch_and_little_else(line: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "--tokens" in done.stdout
    modules = {entry.split("|")[-1].strip() for entry in done.stderr.splitlines() if entry.startswith("import time:")}
    heavy = {"matplotlib", "torch.utils.flop_counter", "pytorch_lightning", "jsonargparse", "torchvision", "pandas"}
    assert not heavy & modules
    # Microseconds of our own modules, by themselves.
    own = sum(
        int(entry.split("|")[0].removeprefix("import time:"))
        for entry in done.stderr.splitlines()
        if entry.startswith("import time:")
        and entry.split("|")[-1].strip().split(".")[0] in ("vix", "einops")
        and "self" not in entry
    )
    assert own < 1_000_000
