"""The house: which way imports point, what an installation holds, and what no file may contain."""

import ast
import configparser
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each part of vix, and how far up it stands: a part imports its own modules and parts that stand lower.
HEIGHTS: dict[str, float] = {
    "tokens": 0,
    "layers": 0,
    "spec": 0,
    "checkpointing": 0,
    "resample": 0.5,
    "attention": 1,
    "positions": 1,
    "embeddings": 1,
    "mixers": 2,
    "backbones": 3,
    "measure": 4,
    "swap": 4,
    "traits": 4,
    "systems": 4,
    "hub": 5,
    "timm": 5,
    "published": 5,
    "convert": 5,
    "explain": 5,
    "commands": 6,
}
# The training side takes nets as arguments, so of vix it knows the tools and no net.
TRAINING_MAY_IMPORT = {"spec", "measure", "tokens", "traits", "training"}
TRAINING_HEIGHTS = {
    "optim": 0,
    "callbacks": 0,
    "classifier": 1,
    "distillation": 2,
    "trained": 2,
    "imported": 2,
    "cli": 2,
}

SKIPPED_FOLDERS = {"__pycache__", "data", "runs", "build", "dist", "wandb"}
HIDDEN_BUT_OURS = {".ci", ".gitignore", ".pre-commit-config.yaml"}


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Every file of the project; git is not asked, so that an unpacked archive is checked as well."""
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".") and path.name not in HIDDEN_BUT_OURS
        if hidden or path.name in SKIPPED_FOLDERS or path.suffix == ".egg-info":
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in ("vix", "datamodules")
    for path in files(ROOT / package)
    if path.suffix == ".py"
}


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, inside functions too; `from a import b` gives a.b where that is a module of ours."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                names.add(submodule if submodule in MODULES else node.module)
    return names


def part(name: str, package: str = "vix") -> str:
    """`vix.attention.softmax` -> `attention`; the package itself -> its own last name."""
    return name.removeprefix(f"{package}.").split(".")[0]


def belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong_imports(module: str) -> set[str]:
    """The imports of a module of vix that design forbids it."""
    ours = {name for name in imports(MODULES[module]) if belongs(name, "vix")}
    if module == "vix":
        return {name for name in ours if part(name) in {"training", "commands"}}
    if belongs(module, "vix.training"):
        wrong = {name for name in ours if part(name) not in TRAINING_MAY_IMPORT}
        # The package's own file gathers what it exports.
        place = 3 if module == "vix.training" else TRAINING_HEIGHTS.get(part(module, "vix.training"), 0)
        return wrong | {
            name
            for name in ours
            if belongs(name, "vix.training")
            and part(name, "vix.training") != part(module, "vix.training")
            and TRAINING_HEIGHTS.get(part(name, "vix.training"), 0) > place
        }
    if part(module) == "commands":
        return set()
    assert part(module) in HEIGHTS, f"say in HEIGHTS where {part(module)} stands"
    height = HEIGHTS[part(module)]
    return {name for name in ours if part(name) != part(module) and HEIGHTS.get(part(name), 99) >= height}


@pytest.mark.parametrize("module", [name for name in MODULES if belongs(name, "vix")])
def test_imports_point_one_way(module: str) -> None:
    assert not wrong_imports(module)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("vix.attention", "from vix.backbones import vit", "vix.backbones"),
        ("vix.layers", "def f():\n    import vix.systems", "vix.systems"),
        ("vix.systems", "from vix import ViP", "vix"),
        ("vix.systems", "import vix.training", "vix.training"),
    ],
)
def test_a_wrong_import_is_seen(
    module: str, source: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "module.py"
    file.write_text(source)
    monkeypatch.setitem(MODULES, module, file)
    assert any(belongs(name, wrong) for name in wrong_imports(module))


@pytest.mark.parametrize("module", MODULES)
def test_vix_and_datamodules_do_not_know_each_other(module: str) -> None:
    other = "datamodules" if belongs(module, "vix") else "vix"
    assert not [name for name in imports(MODULES[module]) if belongs(name, other)]


# What bridges to another package is imported by those who have it, never by `import vix`.
BRIDGES = {"vix.hub": {"huggingface_hub", "safetensors"}, "vix.timm": {"timm"}}
NETS = [name for name in MODULES if belongs(name, "vix") and part(name) not in {"training", "commands"}]


@pytest.mark.parametrize("module", NETS)
def test_the_nets_import_torch_einops_and_the_standard_library_only(module: str) -> None:
    allowed = {"vix", "torch", "einops", *sys.stdlib_module_names, *BRIDGES.get(module, ())}
    assert {name.split(".")[0] for name in imports(MODULES[module])} <= allowed


def test_importing_vix_loads_no_training_library() -> None:
    heavy = [
        "pytorch_lightning",
        "torchvision",
        "torchmetrics",
        "jsonargparse",
        "wandb",
        "sklearn",
        "PIL",
        "datamodules",
        "timm",
        "huggingface_hub",
    ]
    script = f"import sys, vix; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_main_defines_no_class() -> None:
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def undocumented(module: str) -> Iterator[str]:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in [tree, *(node for node in tree.body if isinstance(node, definitions))]:
        name = "" if isinstance(node, ast.Module) else node.name
        if name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{module}.{name}"
        if isinstance(node, ast.ClassDef):
            owner = getattr(importlib.import_module(module), name)
            methods = [child.name for child in node.body if isinstance(child, definitions)]
            # Unlike the syntax tree, `getdoc` knows what an override inherits.
            yield from (
                f"{module}.{name}.{method}"
                for method in methods
                if not method.startswith("_") and not inspect.getdoc(getattr(owner, method))
            )


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_documented(module: str) -> None:
    assert list(undocumented(module)) == []


ABSOLUTE = re.compile(r"""(?<![\w.~<>)}\]/-])(/(?:home|Users|root|work|tmp|mnt|scratch)/[\w.-]+)""")


@pytest.mark.parametrize("path", [path.relative_to(ROOT).as_posix() for path in files()])
def test_no_file_names_a_folder_of_one_machine(path: str) -> None:
    try:
        text = (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        # Pictures and the like: their bytes hold no text to read.
        return
    assert ABSOLUTE.findall(text) == []


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_begins_with_its_comment_head(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# "), "the head says what it is and how to run it"


def requirements(text: str) -> set[str]:
    return {line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")}


def test_the_extra_train_asks_for_what_requirements_ask_for() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    train, _, _ = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition("# To change the code.")
    assert requirements(setup["options.extras_require"]["train"]) == requirements(train)


def test_constraints_fix_every_requirement() -> None:
    def names(file: str) -> set[str]:
        lines = requirements((ROOT / file).read_text(encoding="utf-8"))
        return {re.split(r"[\[<>=!~ ]", line)[0].lower().replace("_", "-") for line in lines}

    assert names("requirements.txt") <= names("constraints.txt")


@pytest.mark.slow
def test_an_installation_holds_vix_and_datamodules_only(tmp_path: Path) -> None:
    # From a copy, since setuptools writes build/ and *.egg-info beside the sources.
    source, target = tmp_path / "source", tmp_path / "target"
    for path in files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    # Without isolation and index: the environment's own setuptools builds it, and nothing is fetched.
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True, text=True)

    installed = {path.name for path in target.iterdir() if path.suffix != ".dist-info"}
    assert installed == {"vix", "datamodules"}
    modules = {path.relative_to(target) for name in installed for path in (target / name).rglob("*.py")}
    assert modules == {path.relative_to(ROOT) for path in MODULES.values()}
    script = "import vix; print(vix.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=target, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(target))
