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
        One line.
    """
    message = _innermost(message)
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"unrecognized arguments: (\S+)", lambda found: _unknown_option(found[1], keys)),
        (r"Group '([^']+)' does not accept option '([^']+)'", lambda found: _unknown_in_group(found, message, line)),
        (r"does not accept option '([^']+)'", lambda found: _unknown_key(found[1], line, keys)),
        (r"arguments are required: (.+)", lambda found: _required(found[1], message, line)),
        (r"Option '([^']+)' is not accepted", lambda found: _unknown_argument(found[1], message, line)),
        (r"module '([^']+)' has no attribute '([^']+)'", lambda found: _unknown_class(found, message, line)),
        (r"No module named '([^']+)'", lambda found: f"{_place(message, line)}no module named {found[1]}"),
        (r"Expected a dot import path string: (\S+)", lambda found: _unknown_name(found[1], message, line)),
        (
            r"Import path (\S+) does not correspond to a subclass of (\w+)",
            lambda found: _other_kind(found, message, line),
        ),
        (r"Expected '([^']+)' to be a subclass of <class '(\w+)'>", lambda found: _other_kind(found, message, line)),
        (r"Not a valid subclass of (\w+)\. Got value: (.*)", lambda found: _no_class(found, message, line)),
        (r"Given value: (.*)", lambda found: f"{_place(message, line)}{_of_union(message)}, got {found[1]}"),
        (r"Expected an? (.*?)\. Got value: (.*)", lambda found: f"{_place(message, line)}{_expected(found)}"),
    ]
    for pattern, reword in rules:
        if found := re.search(pattern, message):
            return reword(found)[:LONGEST]
    return f"{_place(message, line)}{' '.join(KEY.sub('', message).split()).lstrip(': ')}"[:LONGEST]


def _innermost(message: str) -> str:
    """Without what a union adds to the complaint about a class that was chosen: null would have done as well."""
    found = re.search(r"^( *)- (?:Problem with given class_path|Import path)", message, re.MULTILINE)
    if not found:
        return message
    block = message[found.start() :].splitlines()
    end = next((n for n, text in enumerate(block) if n and not text.startswith(f"{found[1]}  ")), len(block))
    return "\n".join([message.splitlines()[0], *block[:end]])


def arguments_of(kind: str | type) -> dict[str, inspect.Parameter]:
    """The arguments that a class takes, inherited ones included; none where it cannot be imported."""
    if isinstance(kind, str):
        module, _, name = kind.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError):
            return {}
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(kind) if isinstance(kind, type) else ():
        if "__init__" in vars(base) and base is not object:
            for parameter in inspect.signature(vars(base)["__init__"]).parameters.values():
                if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                    found.setdefault(parameter.name, parameter)
    return {name: parameter for name, parameter in found.items() if name not in ("self", "params", "optimizer")}


def _key(message: str) -> str:
    return ".".join(KEY.findall(message))


def _place(message: str, line: CommandLine, argument: str | None = None) -> str:
    """`file: key: ` of the thing a message complains about."""
    key = canonical(_key(message) + (f".{argument}" if argument else ""))
    if not key:
        return ""
    below = (setting for setting in reversed(line.settings) if setting.key.startswith(f"{key}."))
    given = line.find(key) or line.find_class(key) or next(below, None)
    return f"{given.source if given else COMMAND_LINE}: {key}: "


def _class(message: str) -> str:
    found = CLASS.search(message)
    return (found[1] or found[2]) if found else ""


def _unknown_option(option: str, keys: Iterable[str]) -> str:
    name = option.partition("=")[0]
    if not name.startswith("-"):
        return f"{COMMAND_LINE}: {name} is not an option; options start with --"
    return f"{COMMAND_LINE}: no option {name}{did_you_mean(name, (f'--{key}' for key in keys))}"


def _unknown_key(key: str, line: CommandLine, keys: Iterable[str]) -> str:
    given = line.find(key)
    known = list(keys)
    # a wrong first word makes the whole key look far from any that is known
    first = {name.split(".")[0] for name in known}
    near = did_you_mean(key, known) if key.split(".")[0] in first else did_you_mean(key.split(".")[0], first, show=20)
    return f"{given.source if given else COMMAND_LINE}: no setting {key}{near}"


def _required(names: str, message: str, line: CommandLine) -> str:
    if kind := _class(message):
        return f"{_place(message, line)}{kind} needs {names}"
    key = names.split(".", 1)[-1]
    if key.startswith("model.net"):
        return (
            f"{line.command} needs a net; give a system's YAML: "
            f"python main.py {line.command} --config experiments/vip_rope.yaml"
        )
    return f"{line.command} needs --{key}"


def _unknown_in_group(found: re.Match[str], message: str, line: CommandLine) -> str:
    group, name = found[1], found[2]
    parameter = arguments_of(_class(message)).get(group)
    fields = arguments_of(parameter.annotation) if parameter and isinstance(parameter.annotation, type) else {}
    return f"{_place(message, line, f'{group}.{name}')}no such setting{did_you_mean(name, fields)}"


def _other_kind(found: re.Match[str], message: str, line: CommandLine) -> str:
    return f"{_place(message, line)}{found[1]} is no {found[2]}"


def _no_class(found: re.Match[str], message: str, line: CommandLine) -> str:
    return f"{_place(message, line)}expected a class_path of a {found[1]}, got {found[2]}"


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
