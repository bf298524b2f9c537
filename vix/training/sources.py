"""What a command line says, read before the parser sees it, so that every complaint can name the file and the key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vix.training.errors import UsageError, did_you_mean

COMMAND_LINE = "command line"
CONFIG_OPTIONS = ("--config", "-c")
# Levels that a short option leaves out: --model.net.dim means model.net.init_args.dim.
SILENT_LEVELS = frozenset({"init_args", "dict_kwargs"})


@dataclass(frozen=True)
class Setting:
    """One value that the user gave.

    Args:
        source: The file as the user named it, or `command line`.
        key: Dotted, without the levels that short options leave out.
        value: As YAML reads it.
    """

    source: str
    key: str
    value: Any


@dataclass(frozen=True)
class CommandLine:
    """One call of `fit`, `validate`, `test` or `predict`.

    Args:
        command: Which of them.
        arguments: The rest, without the options of `own`.
        own: Values of the options that are read before the parser.
        configs: The configuration files, in order.
        settings: All that files and options set, in order; what comes later wins.
    """

    command: str
    arguments: tuple[str, ...]
    own: dict[str, str]
    configs: tuple[Path, ...]
    settings: tuple[Setting, ...]

    def find(self, key: str) -> Setting | None:
        """The setting that wins for a key, given with or without the silent levels."""
        wanted = canonical(key)
        return next((setting for setting in reversed(self.settings) if setting.key == wanted), None)

    def find_class(self, key: str) -> Setting | None:
        """The setting that last chose the class of a key."""
        wanted = f"{canonical(key)}.class_path"
        return next((setting for setting in reversed(self.settings) if setting.key == wanted), None)


def read_command_line(arguments: Sequence[str], own: Sequence[str] = ()) -> CommandLine:
    """Reads the arguments after `main.py`.

    Args:
        arguments: The command and its options.
        own: Names of options, without dashes, that are taken out.

    Raises:
        UsageError: If a configuration file is missing or is no YAML mapping, or one of `own` lacks its value.
    """
    command, *rest = arguments
    kept: list[str] = []
    taken: dict[str, str] = {}
    configs: list[Path] = []
    settings: list[Setting] = []
    tokens = iter(rest)
    for token in tokens:
        option, equals, value = token.partition("=")
        if not option.startswith("-") or option in ("-h", "--help") or option.startswith("--print_"):
            kept.append(token)
            continue
        given = [token]
        if not equals:
            following = next(tokens, None)
            if following is None or following.startswith("--"):
                raise UsageError(f"{COMMAND_LINE}: {option} needs a value")
            value = following
            given.append(following)
        name = option.lstrip("-").removesuffix("+")
        if name in own:
            taken[name] = value
            continue
        kept += given
        if option in CONFIG_OPTIONS and not value.lstrip().startswith("{"):
            configs.append(Path(value))
            content = read_yaml(Path(value))
            settings += [Setting(value, key, item) for key, item in flatten(content)]
        elif option in CONFIG_OPTIONS:
            settings += [Setting(COMMAND_LINE, key, item) for key, item in flatten(_value(value))]
        else:
            settings += [Setting(COMMAND_LINE, canonical(key), item) for key, item in flatten({name: _value(value)})]
    return CommandLine(command, tuple(kept), taken, tuple(configs), tuple(settings))


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a configuration file.

    Raises:
        UsageError: If there is none, or it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = path.parent if path.parent.is_dir() else None
        names = [file.name for file in folder.glob("*.yaml")] if folder else []
        near = did_you_mean(path.name, names) if folder else f"; there is no folder {path.parent}"
        raise UsageError(f"{path}: no such file{near}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a configuration is a YAML mapping such as `model:`, this is {_kind(content)}")
    return content


def flatten(content: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of a nest with their dotted keys, without the silent levels; items of a list share its key."""
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            deeper = where if key in SILENT_LEVELS else f"{where}.{key}".lstrip(".")
            yield from flatten(value, deeper)
    elif isinstance(content, list) and any(isinstance(item, Mapping) for item in content):
        for item in content:
            yield from flatten(item, where)
    else:
        yield where, content


def canonical(key: str) -> str:
    """A key without the levels that short options leave out."""
    return ".".join(part for part in key.split(".") if part not in SILENT_LEVELS)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _kind(content: Any) -> str:
    if content is None:
        return "empty"
    return "a list" if isinstance(content, list) else f"the value {str(content)[:40]!r}"
