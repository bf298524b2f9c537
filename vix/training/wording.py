"""Turns the parser's long messages into one that names the file, the key, the value and what would do."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from vix.training.errors import did_you_mean
from vix.training.sources import COMMAND_LINE, CommandLine, canonical

KEY = re.compile(r'Parser key "([^"]+)"')
CLASS = re.compile(r"Problem with given class_path '([^']+)'|class_path='([^']+)'")
CLASS_TYPE = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")
LONGEST = 300


def explain(message: str, line: CommandLine, keys: Iterable[str]) -> str:
    """Rewrites a message of the parser.

    Args:
        message: The parser's.
        line: What the user gave.
        keys: All dotted keys that the command knows.

    Returns:
        One to three lines.
    """
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"unrecognized arguments: (\S+)", lambda found: _unknown_option(found[1], keys)),
        (r"does not accept option '([^']+)'", lambda found: _unknown_key(found[1], line, keys)),
        (r"arguments are required: (\S+)", lambda found: _required(found[1].split(".", 1)[-1], line)),
        (r"Option '([^']+)' is not accepted", lambda found: _unknown_argument(found[1], message, line)),
        (r"module '([^']+)' has no attribute '([^']+)'", lambda found: _unknown_class(found, message, line)),
        (r"No module named '([^']+)'", lambda found: f"{_place(message, line)}no module named {found[1]}"),
        (r"Expected a dot import path string: (\S+)", lambda found: _unknown_name(found[1], message, line)),
        (r"Given value: (.*)", lambda found: f"{_place(message, line)}{_of_union(message)}, got {found[1]}"),
        (r"Expected an? (.*?)\. Got value: (.*)", lambda found: f"{_place(message, line)}{_expected(found)}"),
    ]
    # a union's message lists a complaint for each of its members; one about a class says more than the union's own
    for pattern, reword in rules:
        if found := re.search(pattern, message):
            return reword(found)[:LONGEST]
    return " ".join(message.split())[:LONGEST]


def arguments_of(class_path: str) -> list[str]:
    """Names of the arguments that a class takes, inherited ones included; none where it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    for base in inspect.getmro(kind):
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names += [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sorted({name for name in names if name not in ("self", "params", "optimizer")})


def _key(message: str) -> str:
    return ".".join(KEY.findall(message))


def _place(message: str, line: CommandLine, argument: str | None = None) -> str:
    """`file: key: ` of the thing a message complains about."""
    key = canonical(_key(message) + (f".{argument}" if argument else ""))
    given = line.find(key) or next((setting for setting in line.settings if setting.key.startswith(f"{key}.")), None)
    return f"{given.source if given else COMMAND_LINE}: {key}: "


def _class(message: str) -> str:
    found = CLASS.search(message)
    return (found[1] or found[2]) if found else ""


def _unknown_option(option: str, keys: Iterable[str]) -> str:
    name = option.partition("=")[0]
    return f"{COMMAND_LINE}: no option {name}{did_you_mean(name.lstrip('-'), keys)}"


def _unknown_key(key: str, line: CommandLine, keys: Iterable[str]) -> str:
    given = line.find(key)
    known = list(keys)
    # a wrong first word makes the whole key look far from any that is known
    first = {name.split(".")[0] for name in known}
    near = did_you_mean(key, known) if key.split(".")[0] in first else did_you_mean(key.split(".")[0], first, show=20)
    return f"{given.source if given else COMMAND_LINE}: no setting {key}{near}"


def _required(key: str, line: CommandLine) -> str:
    if key.startswith("model.net"):
        return (
            f"{line.command} needs a net; give a system's YAML: "
            f"python main.py {line.command} --config experiments/vip_rope.yaml"
        )
    return f"{line.command} needs --{key}"


def _unknown_argument(argument: str, message: str, line: CommandLine) -> str:
    kind = _class(message)
    if kind == "torch.nn.Module":
        given = line.find("model.net.class_path")
        after = f"after {given.source}" if given else "after the YAML of a system, which sets model.net.class_path"
        return f"{_place(message, line, argument)}no net is chosen yet at this point; give it {after}"
    near = did_you_mean(argument, arguments_of(kind), show=24)
    return f"{_place(message, line, argument)}{kind or 'this'} takes no {argument!r}{near}"


def _unknown_class(found: re.Match[str], message: str, line: CommandLine) -> str:
    names: list[str] = []
    try:
        module = importlib.import_module(found[1])
    except ImportError:
        module = None
    if module is not None:
        names = [name for name, value in vars(module).items() if isinstance(value, type)]
    return f"{_place(message, line)}{found[1]} has no {found[2]}{did_you_mean(found[2], names, show=0)}"


def _unknown_name(name: str, message: str, line: CommandLine) -> str:
    key = _key(message)
    namesake = {"data": "datamodules", "model.net": "vix", "trainer.callbacks": "pytorch_lightning.callbacks"}.get(key)
    names: list[str] = []
    if namesake:
        module = importlib.import_module(namesake)
        names = [entry for entry, value in vars(module).items() if isinstance(value, type)]
    return f"{_place(message, line)}no class {name}{did_you_mean(name, names, show=0)}"


def _expected(found: re.Match[str]) -> str:
    return f"expected {_type(found[1])}, got {found[2]}"


def _of_union(message: str) -> str:
    found = re.search(r"Subtypes: \[(.*)\]", message)
    if not found:
        return "not a valid value"
    members = re.split(r", (?=<class|typing|tuple|list|dict|collections)", found[1])
    return f"expected {' or '.join(_type(member) for member in members)}"


def _type(text: str) -> Any:
    text = CLASS_TYPE.sub(r"\1", text).replace("NoneType", "null").replace("typing.", "")
    return re.sub(r"Literal\[(.*)\]", r"one of \1", text)
