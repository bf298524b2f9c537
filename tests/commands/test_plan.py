"""`plan`: what it counts without computing is what a real step takes, and what it prints can be used as it stands.

Each system is measured at one size and in one setting; all of them at both sizes and in every setting:
    VIX_FULL=1 pytest tests/commands/test_plan.py -m slow
"""

import gc
import itertools
import os
import re
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import main
from tests.nets import images, tiny
from vix.backbones import Backbone
from vix.commands.plan.bytes import Planner, Setting
from vix.commands.plan.page import SETTINGS, accumulation
from vix.commands.plan.places import places
from vix.commands.plan.sized import LiveBytes, Sized, results
from vix.measure import bytes_kept
from vix.systems import SYSTEMS

BATCH = 2
CASES = list(itertools.product(SYSTEMS, (32, 64), SETTINGS))
if not os.environ.get("VIX_FULL"):
    combinations = list(itertools.product((32, 64), SETTINGS))
    # neighbours among the systems get other sizes and other settings
    CASES = [(name, *combinations[(5 * place) % len(combinations)]) for place, name in enumerate(SYSTEMS)]


def allocated(function: Callable[[], object]) -> tuple[int, int, int]:
    """What the processor's allocator gave and did not get back while the result lived, and the most at any moment.

    The last number is that most without what oneDNN's convolutions take for copies of their own and give back.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        out = function()
    recorded = record.profiler.kineto_results
    assert recorded is not None
    sizes: list[int] = []
    without: list[int] = []
    end = -1
    for event in sorted(recorded.events(), key=lambda event: event.start_ns()):
        if event.name() == "aten::mkldnn_convolution":
            end = event.start_ns() + event.duration_ns()
            without.append(0)
        elif event.name() == "[memory]":
            sizes.append(event.nbytes())
            if event.start_ns() <= end:
                # of all that happens within a convolution its result remains
                without[-1] += event.nbytes()
            else:
                without.append(event.nbytes())
    del out
    return sum(sizes), max(itertools.accumulate(sizes)), max(itertools.accumulate(without))


def step(net: Backbone, batch: torch.Tensor, setting: Setting) -> torch.Tensor:
    labels = torch.zeros(len(batch), dtype=torch.int64)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.bf16),
        torch.set_grad_enabled(setting.mode == "train"),
    ):
        logits: torch.Tensor = net(batch)
        return functional.cross_entropy(logits, labels) if setting.mode == "train" else logits


def real(net: Backbone, setting: Setting) -> tuple[int, int, int, int | None]:
    """Bytes that a real step holds after its forward, at most, and after its forward by the hooks of autograd.

    The third is its most without oneDNN's own copies.
    """
    net.train(setting.mode == "train").set_grad_checkpointing(setting.checkpointing)
    batch = images(net, BATCH)
    fixed = [*net.parameters(), *net.buffers(), batch]
    if setting.mode == "train":
        optimizer = torch.optim.AdamW(net.parameters())
        step(net, batch, setting).backward()
        optimizer.step()
        fixed += [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        fixed += [value for state in optimizer.state.values() for value in state.values()]
    base = sum(tensor.nbytes for tensor in fixed)

    def whole() -> None:
        out = step(net, batch, setting)
        if setting.mode == "train":
            out.backward()

    held, (_, peak, without) = allocated(lambda: step(net, batch, setting))[0], allocated(whole)
    hooked = None
    # checkpoints keep their inputs where the hooks do not look
    if setting.mode == "train" and not setting.checkpointing:
        hooked = base + bytes_kept(lambda: step(net, batch, setting), exclude=fixed)
    return base + held, base + peak, base + without, hooked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "setting"), CASES, ids=lambda value: getattr(value, "label", str(value)))
def test_what_is_counted_is_within_a_tenth_of_what_a_real_step_takes(name: str, size: int, setting: Setting) -> None:
    torch.manual_seed(0)
    need = Planner(lambda: SYSTEMS[name](image_size=size), average=False).need(BATCH, setting)
    held, peak, without, hooked = real(SYSTEMS[name](image_size=size), setting)
    assert need.held == pytest.approx(held, rel=0.1)
    assert need.peak == pytest.approx(without, rel=0.1)
    # oneDNN fills up a convolution of few channels, such as one a head, to 16 in copies of its input and its output,
    # which in bfloat16 and without anything kept for backward is the highest moment
    beside = 0.3 if setting.label == "infer bf16" and has_narrow_convolutions(SYSTEMS[name](image_size=size)) else 0.1
    assert (1 - beside) * peak <= need.peak <= 1.1 * peak
    if hooked is not None:
        assert need.held == pytest.approx(hooked, rel=0.1)


def has_narrow_convolutions(net: Backbone) -> bool:
    return any(isinstance(part, nn.Conv2d) and 1 < part.groups < 16 for part in net.modules())


@pytest.mark.parametrize("name", ["ViP", "FNet", "HybridViL", "LeViN", "CvN", "CCT"])
def test_small_nets_can_be_counted_and_a_step_takes_what_was_counted(name: str) -> None:
    need = Planner(lambda: tiny(SYSTEMS[name]), average=False).need(BATCH, Setting())
    held, peak, _, hooked = real(tiny(SYSTEMS[name]), Setting())
    assert need.held == pytest.approx(held, rel=0.1)
    assert need.held == pytest.approx(hooked, rel=0.1)
    assert need.peak == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS if os.environ.get("VIX_FULL") else ["LeViN", "LeViP", "CvN"])
def test_all_settings_of_a_system_are_planned_in_five_seconds(name: str) -> None:
    # what torch imports once is no system's, and what another test asked is forgotten
    Planner(lambda: tiny(SYSTEMS["ViT"])).largest(2**30, Setting(checkpointing=True))
    results.cache_clear()
    start = time.process_time()
    planner = Planner(lambda: SYSTEMS[name](image_size=64, num_classes=200))
    assert all(planner.largest(8 * 2**30, setting) is not None for setting in SETTINGS)
    assert time.process_time() - start < 5


def test_what_a_net_no_longer_needs_is_not_counted_whatever_the_garbage_collector_does() -> None:
    planner = Planner(lambda: tiny(SYSTEMS["ViN"], depth=4))
    gc.disable()
    try:
        needs = [planner.need(2, Setting("infer")) for _ in range(2)]
    finally:
        gc.enable()
    # beside the images and labels there are the logits
    assert needs[0] == needs[1]
    assert needs[0].held - needs[0].fixed < 2 * images(planner.net, 2).nbytes


def test_convolutions_lay_out_their_results_as_real_ones_do() -> None:
    for batch, layout in itertools.product((1, 3), (torch.contiguous_format, torch.channels_last)):
        x = torch.randn(batch, 8, 6, 6).contiguous(memory_format=layout).requires_grad_()
        conv = nn.Conv2d(8, 16, 3, bias=False)
        out = conv(x)
        out.sum().backward()
        fake = Sized.like(x)
        with LiveBytes(0):
            made = functional.conv2d(fake, Sized.like(conv.weight))
            made.sum().backward()
        assert fake.grad is not None
        assert x.grad is not None
        assert (made.stride(), fake.grad.stride()) == (out.stride(), x.grad.stride())


def test_a_tensor_without_values_refuses_what_would_need_them() -> None:
    with pytest.raises(RuntimeError, match="outside of LiveBytes"):
        Sized.like(torch.ones(3)) + 1
    with LiveBytes(0), pytest.raises(NotImplementedError, match="in place"):
        torch.ones(2, 3).t_()
    with LiveBytes(0), pytest.raises(RuntimeError, match="meta tensors"):
        torch.ones(3).sum().item()


@pytest.mark.parametrize("setting", [Setting(), Setting("infer")], ids=lambda setting: setting.label)
def test_the_largest_batch_is_the_largest_that_fits(setting: Setting) -> None:
    planner = Planner(lambda: tiny(SYSTEMS["ViT"], depth=1))
    for memory in (2**19, 2**26):
        largest = planner.largest(memory, setting)
        assert largest is not None
        assert planner.need(largest.batch, setting).peak <= memory
        # one part in fifty, since what is scaled from a smaller batch is a little more than what is counted
        assert planner.need(largest.batch + 1 + largest.batch // 50, setting).peak > memory


def test_where_not_one_image_fits_there_is_no_batch() -> None:
    assert Planner(lambda: tiny(SYSTEMS["ViT"])).largest(50_000, Setting()) is None


def test_the_average_of_the_weights_is_one_more_copy_of_them() -> None:
    needs = [Planner(lambda: tiny(SYSTEMS["ViT"]), average=average).need(1, Setting()) for average in (True, False)]
    weights = sum(parameter.nbytes for parameter in tiny(SYSTEMS["ViT"]).parameters())
    assert [need.fixed - needs[1].fixed for need in needs] == [weights, 0]


def test_checkpointing_and_bf16_keep_less_and_inference_least() -> None:
    planner = Planner(lambda: tiny(SYSTEMS["ViP"], depth=6))
    plain, checkpointed, bf16 = (planner.need(8, setting).held for setting in SETTINGS[:3])
    assert checkpointed < plain
    assert bf16 < plain
    assert planner.need(8, Setting("infer")).peak < planner.need(8, Setting()).peak


@pytest.mark.parametrize(
    ("largest", "wanted", "split"),
    [(300, 256, (256, 1)), (100, 256, (64, 4)), (256, 256, (256, 1)), (1, 7, (1, 7)), (6, 7, (1, 7))],
)
def test_a_wanted_batch_is_split_into_equal_ones_that_fit(largest: int, wanted: int, split: tuple[int, int]) -> None:
    assert accumulation(largest, wanted) == split


def test_the_data_sets_are_those_of_the_experiments() -> None:
    found = {
        place.name: (place.image_size, place.channels, place.classes) for place in places(main.HERE / "experiments")
    }
    assert found == {
        "CIFAR10": ((32, 32), 3, 10),
        "Digits": ((8, 8), 1, 10),
        "TinyImageNet": ((64, 64), 3, 200),
    }


def test_a_table_has_a_line_a_system_and_says_how_to_accumulate(capsys: pytest.CaptureFixture[str]) -> None:
    system = "ViT:dim=16,depth=1,heads=2,dim_head=8"
    assert main.main(["plan", system, "--memory", "64MB", "--data", "digits", "--batch", "4096"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Largest batch in 64 MB, of which 10% stays free")
    assert "Digits: 1 x 8 x 8, 10 classes" in lines
    first = re.search(r"([\d,]+) \((\d+) x (\d+)\)", lines[-1])
    assert first is not None
    largest, size, times = (int(group.replace(",", "")) for group in first.groups())
    assert size <= largest
    assert size * times == 4096
    for setting in SETTINGS:
        assert setting.label in lines[-2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ViQ", "--memory", "8GB"], "no system or kernel 'ViQ'"),
        (["Performer", "--memory", "8GB"], "Performer is a bare kernel"),
        (["ViT", "--memory", "8GB", "--data", "CIFAR"], "--data CIFAR: there are CIFAR10"),
        (["ViT:patch_size=5", "--memory", "8GB", "--data", "CIFAR10"], r"ViT\(patch_size=5\) on CIFAR10: patch_size"),
        (["ViT", "--memory", "8GB", "--image_size", "1", "2", "3"], "--image_size takes a side"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert re.search(told, captured.err)
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("memory", ["8 apples", "0", "-3GB"])
def test_a_memory_that_is_none_is_refused(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["plan", "ViT", f"--memory={memory}"])
    assert ended.value.code == 2
    assert "8GB" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("size", [32, 64])
def test_on_a_gpu_the_allocators_peak_is_within_a_tenth(name: str, size: int) -> None:
    net: nn.Module = SYSTEMS[name](image_size=size).cuda()
    batch = torch.randn(64, 3, size, size, device="cuda")
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        functional.cross_entropy(net(batch), torch.zeros(64, dtype=torch.int64, device="cuda")).backward()
        peak = torch.cuda.max_memory_allocated()
        optimizer.step()
    need = Planner(lambda: SYSTEMS[name](image_size=size), average=False).need(64, Setting())
    assert need.peak == pytest.approx(peak, rel=0.1)
