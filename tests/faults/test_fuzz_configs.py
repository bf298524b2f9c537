"""2,000 mutations of the shipped YAMLs: each trains a step, or is refused in at most five lines, and leaves no file.

VIX_FUZZ=full python -m pytest tests/faults/test_fuzz_configs.py            # 20 chunks of 100
VIX_FUZZ=full python -m pytest tests/faults/test_fuzz_configs.py -k "chunk-7"
"""

import importlib
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

import main
from tests.faults import fuzz
from tests.test_main import SIZES
from vix.spec import parameters_of

EXPERIMENTS = Path(main.__file__).parent / "experiments"
SYSTEMS = sorted(path for path in EXPERIMENTS.glob("*.yaml") if path.stem != "defaults")
PUBLISHED = sorted((EXPERIMENTS / "published").glob("*.yaml"))
OVERLAYS = [
    EXPERIMENTS / "overlays" / f"{name}.yaml" for name in ("bf16", "early_stopping", "published_recipe", "offline")
]
# Given after what is mutated: no second process, no other device than this one, one step.
FAST = [
    "--trainer.fast_dev_run=true",
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"),
    "--trainer.profiler=null",
]
CHUNKS, CHUNK = (20, 100) if fuzz.FULL else (1, 12)

Path_ = tuple[str, ...]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def merged(one: Any, other: Any) -> Any:
    """Two configurations, the second winning; arguments of another class are forgotten."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return deepcopy(other)
    if one.get("class_path") != other.get("class_path", one.get("class_path")):
        return deepcopy(other)
    return {
        key: merged(one[key], other[key]) if key in one and key in other else deepcopy({**one, **other}[key])
        for key in {**one, **other}
    }


@lru_cache
def whole(experiment: Path, overlay: Path | None) -> dict[str, Any]:
    """All that a user's YAMLs say together, on Digits and at a size that takes no time."""
    content = read(EXPERIMENTS / "defaults.yaml")
    for path in (experiment, EXPERIMENTS / "overlays" / "digits.yaml", *([overlay] if overlay else [])):
        content = merged(content, read(path))
    net = content["model"]["net"]
    module, _, name = net["class_path"].rpartition(".")
    allowed = parameters_of(getattr(importlib.import_module(module), name))
    arguments = net.get("init_args") or {}
    net["init_args"] = {**arguments, **{key: size for key, size in SIZES.items() if key in allowed}}
    content["data"]["init_args"] = {**content["data"]["init_args"], "mean": None, "std": None, "fraction": 0.05}
    return content


def places(content: Any, where: Path_ = ()) -> list[Path_]:
    """The keys that lead to every value, those of mappings included."""
    if not isinstance(content, dict):
        return [where]
    return [place for key, value in content.items() for place in places(value, (*where, key))] + (
        [where] if where else []
    )


NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 5, 7, 2**31, 2**63, 10**30])
REALS = st.sampled_from([-1.0, -0.0, 1e-30, 0.5, 1.0, 1.5, 1e308, float("inf"), float("-inf"), float("nan")])
WORDS = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                " ",
                "null",
                "true",
                "0",
                "1e-3",
                "-",
                "--",
                "~",
                "*",
                "&a",
                "%s",
                "{}",
                "{0}",
                "[]",
                "a: b",
                "..",
                "../x",
            ),
            *(
                "vix",
                "vix.",
                ".vix",
                "vix.ViP",
                "vix.ViN",
                "vix.FNet",
                "vix.attention.Performer",
                "vix.SYSTEMS",
                "vix.nn",
            ),
            *("torch.nn.Linear", "torch.nn.Identity", "torch.optim.SGD", "torch.optim.LBFGS", "torch.optim.Optimizer"),
            *(
                "datamodules.Digits",
                "datamodules.ImageDataModule",
                "datamodules.DataError",
                "os.getcwd",
                "builtins.dict",
            ),
            *("rope", "rope_axial", "learned", "none", "cls", "mean", "auto", "val/loss", "val/nothing", "16-mixed"),
            *("ä", "名前", "\x00", "\u2028", "\ud7ff", "a\nb", "a" * 2000),
        ]
    ),
    st.text(max_size=8),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, REALS, WORDS)
NESTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5
)
SPECS = st.fixed_dictionaries(
    {"class_path": WORDS}, optional={"init_args": st.dictionaries(WORDS, SCALARS, max_size=2)}
)
VALUES = st.one_of(SCALARS, SCALARS, NESTS, SPECS)
SNIPPETS = st.one_of(
    st.sampled_from(
        [
            "",
            "\t",
            "\n",
            ": ",
            "- ",
            "[",
            "}",
            "#",
            "&a ",
            "*a ",
            "&a [*a]",
            "!!python/object/apply:os.getcwd []",
            "'",
            "---\n",
        ]
    ),
    st.text(max_size=4),
)


Change = tuple[str, str, Any]
Mutation = tuple[str, str | None, list[Change]]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """A shipped experiment, perhaps an overlay, and what is changed: kind, dotted key, value."""
    experiment = draw(st.sampled_from([*SYSTEMS, *PUBLISHED]))
    overlay = draw(st.one_of(st.none(), st.sampled_from(OVERLAYS)))
    content = whole(experiment, overlay)
    there = places(content)
    changes: list[Change] = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        place = draw(st.sampled_from(there))
        key = ".".join(place)
        kind = draw(st.sampled_from(["set", "set", "set", "set", "drop", "rename", "add", "move", "text"]))
        if kind == "rename":
            changes.append((kind, key, misspelt(draw, key)))
        elif kind == "move":
            changes.append((kind, key, ".".join(draw(st.sampled_from(there)))))
        elif kind == "add":
            changes.append((kind, f"{key}.{draw(st.one_of(WORDS, known(there)))}", draw(VALUES)))
        elif kind == "text":
            changes.append((kind, draw(SNIPPETS), draw(st.tuples(st.floats(0, 1), st.integers(0, 9)))))
        else:
            changes.append((kind, key, None if kind == "drop" else draw(like(content, place))))
    return str(experiment.relative_to(EXPERIMENTS)), overlay.name if overlay else None, changes


def like(content: Any, place: Path_) -> st.SearchStrategy[Any]:
    """Values for a place, half of them of the kind that is there."""
    for key in place:
        content = content[key]
    if isinstance(content, bool) or content is None:
        return VALUES
    alike = {
        int: NUMBERS,
        float: st.one_of(NUMBERS, REALS),
        str: WORDS,
        list: st.lists(st.one_of(NUMBERS, REALS), max_size=3),
    }
    return st.one_of(alike.get(type(content), NESTS), VALUES)


def known(there: list[Path_]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted({place[-1] for place in there}))


def misspelt(draw: st.DrawFn, key: str) -> str:
    word = key.rpartition(".")[2]
    place = draw(st.integers(0, len(word) - 1))
    return draw(
        st.sampled_from([word[:place] + word[place + 1 :], word[:place] + "x" + word[place:], word.upper(), word[::-1]])
    )


def change(content: dict[str, Any], kind: str, key: str, value: Any) -> None:
    """Makes one change, where its place is still there."""
    *way, last = key.split(".")
    holder: Any = content
    for step in way:
        if not isinstance(holder, dict) or step not in holder:
            return
        if not isinstance(holder[step], dict) and kind == "add":
            holder[step] = {}
        holder = holder[step]
    if not isinstance(holder, dict):
        return
    if kind in ("set", "add"):
        holder[last] = value
    elif last in holder and kind == "drop":
        del holder[last]
    elif last in holder and kind == "rename":
        holder[value] = holder.pop(last)
    elif last in holder and kind == "move":
        change(content, "set", value, deepcopy(holder[last]))


# Changes that were once answered by a traceback, a page of text, or nothing at all.
KEPT: list[Mutation] = [
    ("ccn.yaml", None, [("set", "seed_everything", -(2**63))]),
    ("published/hybrid_vil.yaml", "bf16.yaml", [("set", "model.optimizer", None), ("drop", "model.decay_all", None)]),
    ("vip.yaml", None, [("set", "model.optimizer.init_args.lr", None)]),
    ("vip.yaml", None, [("set", "model.optimizer.init_args.lr", -1.0)]),
    ("vit.yaml", None, [("set", "model.net.init_args.depth", 2**31)]),
    ("hybrid_vip.yaml", None, [("set", "model.net.init_args.features", 10**30)]),
]


def try_one(experiment: str, overlay: str | None, changes: list[Change], folder: Path) -> None:
    content = deepcopy(whole(EXPERIMENTS / experiment, EXPERIMENTS / "overlays" / overlay if overlay else None))
    for kind, key, value in changes:
        if kind != "text":
            change(content, kind, key, value)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    for kind, snippet, value in changes:
        if kind == "text":
            place, dropped = round(value[0] * len(text)), value[1]
            text = text[:place] + snippet + text[place + dropped :]
    file = folder / "mutated.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    # so that a failure can be repeated, and kept
    case = repr((experiment, overlay, changes))
    try:
        fuzz.call(main.main, ["fit", "--config", str(file), *FAST]).check()
    except BaseException as error:
        error.add_note(case)
        raise
    assert [path.name for path in Path().iterdir()] == [], case


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


@pytest.mark.parametrize("chunk", range(CHUNKS), ids=lambda n: f"chunk-{n}")
def test_a_mutated_configuration_trains_or_is_refused_in_five_lines(chunk: int, folder: Path) -> None:
    def law(mutation: Mutation) -> None:
        try_one(*mutation, folder)

    fuzz.hold(law, CHUNK, chunk, mutation=mutations())


@pytest.mark.parametrize("case", KEPT, ids=[case[2][0][1] for case in KEPT])
def test_a_configuration_that_once_failed_is_answered_cleanly(case: Mutation, folder: Path) -> None:
    try_one(*case, folder)
