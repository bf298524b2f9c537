"""What the numbers say: how cost grows with tokens, and from how many on one candidate is cheaper than another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


def growth_exponent(tokens: Sequence[int], costs: Sequence[float]) -> float | None:
    """Fits cost ~ tokens^p by least squares of logarithms and returns p; None for fewer than two sizes."""
    points = [(math.log(n), math.log(cost)) for n, cost in zip(tokens, costs, strict=True) if 0 < cost < math.inf]
    if len({x for x, _ in points}) < 2:
        return None
    middle = sum(x for x, _ in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * y for x, y in points) / spread


@dataclass(frozen=True)
class Crossing:
    """From where on one cost stays below another.

    Args:
        tokens: Where the curves cross; None if the contender is not cheaper at the largest size.
        before: The largest measured size where it is not yet cheaper; None if there is none.
        after: The size measured next, from which on it is cheaper at every size.
        ratio: The baseline's cost over the contender's at the largest size; infinite where the baseline ran out of
            memory.
    """

    tokens: float | None
    before: int | None
    after: int | None
    ratio: float


def crossing(tokens: Sequence[int], contender: Sequence[float], baseline: Sequence[float]) -> Crossing:
    """Finds from how many tokens on the contender is cheaper; between two sizes on straight lines of logarithms.

    Args:
        tokens: The measured sizes, ascending.
        contender: Its cost at each; infinity stands for out of memory.
        baseline: The other's.

    Raises:
        ValueError: If nothing was measured.
    """
    if not tokens:
        raise ValueError("a crossing needs at least one size at which both were measured")
    dearer = [index for index in range(len(tokens)) if not contender[index] < baseline[index]]
    ratio = math.inf if baseline[-1] == math.inf else baseline[-1] / contender[-1]
    if not dearer:
        return Crossing(tokens[0], None, tokens[0], ratio)
    last = dearer[-1]
    if last == len(tokens) - 1:
        return Crossing(None, tokens[-1], None, math.nan if contender[-1] == baseline[-1] == math.inf else ratio)
    before, after = tokens[last], tokens[last + 1]
    if math.inf in (contender[last], baseline[last + 1]):
        return Crossing(after, before, after, ratio)
    gaps = [math.log(contender[i] / baseline[i]) for i in (last, last + 1)]
    share = gaps[0] / (gaps[0] - gaps[1])
    return Crossing(before * (after / before) ** share, before, after, ratio)


def sentence(found: Crossing, contender: str, baseline: str, verb: str, largest: int) -> str:
    """Says a crossing in one sentence.

    Args:
        found: The crossing, which exists.
        contender: Who is compared.
        baseline: With whom.
        verb: What being cheaper is called: "trains faster", "infers faster", "keeps fewer bytes".
        largest: The largest measured number of tokens.
    """
    assert found.tokens is not None
    where = "the smallest measured" if found.before is None else f"between {found.before:,} and {found.after:,}"
    gain = f"where {baseline} is out of memory" if found.ratio == math.inf else f"by {found.ratio:.2f}x"
    return f"{contender} {verb} than {baseline} from n = {_rounded(found.tokens):,} ({where}; at {largest:,} {gain})"


def refusal(shares: dict[str, float], baseline: str, verb: str, largest: int) -> str:
    """Says in one sentence who is not cheaper at the largest size.

    Args:
        shares: The baseline's cost over that of each contender there; 0 for a contender out of memory, NaN where both
            are.
        baseline: With whom they are compared.
        verb: As for `sentence`.
        largest: The largest measured number of tokens.
    """

    def told(share: float) -> str:
        return "both out of memory" if math.isnan(share) else "out of memory" if share == 0 else f"{share:.2f}x"

    names = ", ".join(f"{name} ({told(share)})" for name, share in shares.items())
    return f"at n = {largest:,} none of these {verb} than {baseline}: {names}"


def _rounded(tokens: float) -> int:
    # Two digits are all that an interpolation is worth; a measured size is given whole.
    if tokens == int(tokens):
        return int(tokens)
    unit = 10 ** max(0, math.floor(math.log10(tokens)) - 1)
    return round(tokens / unit) * unit
