import pytest
import torch
from scipy import stats

from datamodules.draws import GOLDEN_GAMMA, WORD, Draws, below, key, mix, mix_word, signed, unit

MANY = torch.arange(50_000)


def test_the_hash_is_splitmix64() -> None:
    # the first five outputs for the seed 1234567, as Vigna's reference code prints them
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = [(1234567 + GOLDEN_GAMMA * step) % WORD for step in range(1, 6)]
    assert [mix_word(state) for state in states] == expected
    assert mix(torch.tensor([signed(state) for state in states])).tolist() == [signed(word) for word in expected]


def test_draws_stay_what_they_are() -> None:
    # a change would give every seed another run
    bits = Draws(7, 3, torch.tensor([0, 41])).bits("crop", 2)
    assert bits.tolist() == [[-517882866713897556, 7634433467156561035], [1932202284471725765, 4312066807110987938]]


def test_draws_depend_on_the_image_alone_not_on_its_batch() -> None:
    whole = Draws(1, 2, MANY[:1000]).bits("flip", 3)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for rows in order.split(77):
        assert Draws(1, 2, rows).bits("flip", 3).equal(whole[rows])


def test_the_first_draws_do_not_depend_on_how_many_follow() -> None:
    draws = Draws(0, 0, MANY[:100])
    assert draws.bits("crop", 9)[:, :2].equal(draws.bits("crop", 2))


@pytest.mark.parametrize("other", [(1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (-1, 0, "a")], ids=str)
def test_seed_epoch_and_stream_all_count(other: tuple[int, int, str]) -> None:
    seed, epoch, stream = other
    mine, others = Draws(0, 0, MANY).uniform("a", 1), Draws(seed, epoch, MANY).uniform(stream, 1)
    assert abs(torch.corrcoef(torch.cat([mine, others], 1).T)[0, 1]) < 0.02


def test_keys_do_not_collide() -> None:
    keys = {key(seed, epoch, stream) for seed in range(20) for epoch in range(50) for stream in ("a", "b", "order")}
    assert len(keys) == 3000


def test_numbers_are_uniform() -> None:
    draws = Draws(0, 0, MANY).uniform("a", 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column.double().numpy(), "uniform").pvalue > 1e-3


def test_neighbouring_images_and_draws_are_independent() -> None:
    draws = Draws(0, 0, MANY).uniform("a", 2)
    pairs = {
        "image and the next": (draws[:-1, 0], draws[1:, 0]),
        "draw and the next": (draws[:, 0], draws[:, 1]),
        "epoch and the next": (draws[:, 0], Draws(0, 1, MANY).uniform("a", 1)[:, 0]),
    }
    for name, (one, other) in pairs.items():
        cells = (one * 10).long() * 10 + (other * 10).long()
        assert stats.chisquare(cells.bincount(minlength=100).numpy()).pvalue > 1e-3, name


def test_every_bit_is_fair() -> None:
    bits = Draws(0, 0, MANY).bits("a", 1)
    shares = torch.stack([(bits >> place & 1).double().mean() for place in range(64)])
    # standard deviation 0.0022
    assert (shares - 0.5).abs().max() < 0.01


@pytest.mark.parametrize("high", [1, 2, 9, 14, 1000])
def test_integers_are_uniform_below_their_bound(high: int) -> None:
    values = below(Draws(0, 0, MANY).bits("a", 1)[:, 0], high)
    assert values.min() == 0
    assert values.max() == high - 1
    if high > 1:
        assert stats.chisquare(values.bincount(minlength=high).numpy()).pvalue > 1e-3


def test_the_extremes_stay_in_range() -> None:
    extremes = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    assert unit(extremes).tolist() == [0.0, 1 - 2.0**-24, 0.5 - 2.0**-24, 0.5]
    assert below(extremes, 10).tolist() == [0, 9, 4, 5]


@pytest.mark.gpu
def test_a_gpu_draws_the_same() -> None:
    draws, there = Draws(5, 6, MANY), Draws(5, 6, MANY.cuda())
    assert there.bits("a", 3).cpu().equal(draws.bits("a", 3))
    assert there.uniform("a", 3).cpu().equal(draws.uniform("a", 3))
