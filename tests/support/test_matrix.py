"""docs/support.md says what is tried and found, all of it, and no more."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.cells import (
    COLUMNS,
    ROWS,
    YES,
    NotApplicableError,
    UnsupportedError,
    answer,
    deterministic,
    fp32,
    half,
    make,
    recomputed,
    resized,
)
from tests.support.matrix import DOCUMENT, PARTS, Table, compute, dear_part, problems, read, render, turn
from vix.backbones import Backbone

CHEAP = [name for name, column in COLUMNS.items() if not column.dear]
DEAR = [name for name, column in COLUMNS.items() if column.dear]


@pytest.fixture(scope="module")
def documented() -> Table:
    return read(DOCUMENT.read_text(encoding="utf-8"))


def test_every_system_has_an_answer_in_every_column_and_every_no_a_reason(documented: Table) -> None:
    assert not problems(documented)


def test_the_document_is_what_its_answers_make(documented: Table) -> None:
    assert render(documented) == DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("column", CHEAP)
@pytest.mark.filterwarnings("ignore")
def test_a_cheap_column_is_what_is_tried_now(column: str, documented: Table) -> None:
    found = compute([column])
    assert {row: found[row][column] for row in ROWS} == {row: documented[row][column] for row in ROWS}


@pytest.mark.slow
@pytest.mark.parametrize("column", DEAR)
@pytest.mark.filterwarnings("ignore")
def test_a_part_of_the_dear_columns_is_what_is_tried_now(column: str, documented: Table) -> None:
    turns = range(PARTS) if os.environ.get("VIX_SUPPORT_ALL") else [turn()]
    rows = [row for each in turns for row, asked in dear_part(each) if asked == column]
    found = compute([column], rows)
    assert {row: found[row][column] for row in rows} == {row: documented[row][column] for row in rows}


def test_ten_turns_try_every_dear_cell_once() -> None:
    cells = [cell for number in range(PARTS) for cell in dear_part(number)]
    assert sorted(cells) == sorted((row, column) for row in ROWS for column in DEAR)
    assert turn() == turn() < PARTS


def test_a_table_is_read_as_it_was_written() -> None:
    answers = ["yes", "no: it is too long", "n/a: it has none", "no: it is too long"]
    table = {row: {name: answers[(n + m) % 4] for m, name in enumerate(COLUMNS)} for n, row in enumerate(ROWS)}
    assert read(render(table)) == table
    assert not problems(table)


def test_a_hole_in_a_table_is_seen() -> None:
    table = {row: dict.fromkeys(COLUMNS, YES) for row in ROWS}
    table["ViT"]["fp32"] = "no"
    del table["ViP"]["DDP"]
    table["ViN"]["ONNX"] = "perhaps"
    del table["FNet"]
    table["ViQ"] = dict(table["ViL"])
    found = problems(table)
    assert "ViT, fp32: no without a reason" in found
    assert "ViP, DDP: '' is no answer" in found
    assert "ViN, ONNX: 'perhaps' is no answer" in found
    assert "FNet, fp32: '' is no answer" in found
    assert "row ViQ is no system" in found


def asks(check: Callable[[Backbone], None], spoil: Callable[[Any], None]) -> str:
    """What a check answers about a net that was spoilt."""
    net: Any = make("ViT")
    spoil(net)
    return answer(lambda: check(net))


def test_a_spoilt_net_gets_a_no_that_says_why() -> None:
    def idle(net: Any) -> None:
        net.idle = nn.Parameter(torch.zeros(1))

    def forgets(net: Any) -> None:
        net.set_grad_checkpointing = lambda: net.head.register_forward_hook(lambda _, __, out: 2 * out)

    def moody(net: Any) -> None:
        calls = iter(range(1000))
        net.head.register_forward_hook(lambda _, __, out: out * (1 + next(calls)))

    def coarse(net: Any) -> None:
        net.head.register_forward_hook(lambda _, __, out: out if out.dtype == torch.float32 else out * 1.5)

    def stuck(net: Any) -> None:
        def refuse(size: int) -> None:
            raise ValueError(f"no way to {size}")

        net.resized = refuse

    assert asks(fp32, idle) == "no: the gradient of idle is missing or not finite"
    assert asks(recomputed, forgets).startswith("no: gradients of ")
    assert asks(deterministic, moody).startswith("no: two trainings from one seed differ in ")
    assert asks(half(torch.bfloat16, 0.04), coarse).startswith("no: logits differ by ")
    assert asks(resized, stuck) == "no: no way to 16"


def test_only_what_says_why_becomes_an_answer() -> None:
    def no() -> None:
        raise UnsupportedError("it cannot")

    def not_applicable() -> None:
        raise NotApplicableError("it has none")

    def broken() -> None:
        raise RuntimeError("a bug")

    assert answer(lambda: None) == "yes"
    assert answer(no) == "no: it cannot"
    assert answer(not_applicable) == "n/a: it has none"
    with pytest.raises(RuntimeError, match="a bug"):
        answer(broken)
