"""Random numbers that depend on nothing but (seed, epoch, image, what they are for, number of the draw).

A counter-based generator: no state is kept, so the same image draws the same numbers on any device, in any batch,
worker or rank, and after a resume. The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014, with Stafford's mixing function 13), written in int64 arithmetic that wraps around.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
WORD = 1 << 64


def signed(word: int) -> int:
    """An unsigned 64-bit word as the int64 with the same bits."""
    word %= WORD
    return word - WORD if word >= WORD >> 1 else word


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of int64, element by element."""
    # torch shifts int64 arithmetically; the masks take the copies of the sign away again
    z = ((z >> 30).bitwise_and_((1 << 34) - 1)).bitwise_xor_(z).mul_(signed(MIX_1))
    z = ((z >> 27).bitwise_and_((1 << 37) - 1)).bitwise_xor_(z).mul_(signed(MIX_2))
    return ((z >> 31).bitwise_and_((1 << 33) - 1)).bitwise_xor_(z)


def mix_word(z: int) -> int:
    """`mix` of one unsigned 64-bit word, in Python's integers."""
    z = ((z ^ (z >> 30)) * MIX_1) % WORD
    z = ((z ^ (z >> 27)) * MIX_2) % WORD
    return z ^ (z >> 31)


@lru_cache(maxsize=1024)
def key(seed: int, epoch: int, stream: str) -> int:
    """The 64-bit key of one purpose (`stream`) in one epoch of one seed."""
    name = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    word = 0
    for part in (seed, epoch, name):
        word = mix_word((word + GOLDEN_GAMMA + part) % WORD)
    return word


class Draws:
    """The random numbers of some images in one epoch.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch, counted from 0.
        indices: Positions of the images in their official split, int64 (b,).
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor) -> None:
        self.seed = seed
        self.epoch = epoch
        self.indices = indices

    def bits(self, stream: str, count: int) -> Tensor:
        """64 random bits for each image and draw, int64 (b, count)."""
        word = key(self.seed, self.epoch, stream)
        image = mix(self.indices * signed(GOLDEN_GAMMA) + signed(word))
        counter = torch.arange(1, count + 1, device=self.indices.device) * signed(GOLDEN_GAMMA)
        return mix(image[:, None] + counter)

    def uniform(self, stream: str, count: int) -> Tensor:
        """Numbers in [0, 1) with 24 random bits, float32 (b, count)."""
        return unit(self.bits(stream, count))


def unit(bits: Tensor) -> Tensor:
    """Random bits as numbers in [0, 1), of which there are 2^24, float32."""
    return ((bits >> 40) & 0xFFFFFF).float().mul_(2.0**-24)


def below(bits: Tensor, high: int) -> Tensor:
    """Random bits as integers in [0, high), int64; `high` at most 2^31, bias below high / 2^32."""
    return (((bits >> 32) & 0xFFFFFFFF) * high) >> 32
