"""What a net was made of, in plain types, and the way back: `build(net.spec)` is the same net with fresh weights.

A spec is {"class_path": "vix.ViP", "init_args": {...}}, as a YAML has it; an argument that is a class, a partial or
another net's part is a spec of its own.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

from torch import nn

PLAIN = (str, int, float, bool, type(None))
TRUSTED = ("vix.",)


def class_path(kind: type) -> str:
    """Returns the shortest path under which a class can be imported: `vix.ViP` for what `vix` exports."""
    package = importlib.import_module(kind.__module__.partition(".")[0])
    if getattr(package, kind.__name__, None) is kind:
        return f"{package.__name__}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def describe(value: Any) -> Any:
    """Writes an argument in plain types.

    Raises:
        TypeError: If the argument is neither plain, nor a class, nor a partial of one.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class_path": class_path(value)}
    if isinstance(value, functools.partial):
        # the partials of jsonargparse call a function of its own with the class as last argument
        kind = value.args[-1] if value.args else value.func
        if isinstance(kind, type):
            return {"class_path": class_path(kind), "init_args": describe(value.keywords)}
    raise TypeError(f"{value!r} cannot be written in a spec: give a class or functools.partial(Class, option=...)")


def _own(value: Any) -> Any:
    """Copies lists and mappings, so that a caller who changes his does not change what was recorded."""
    if isinstance(value, Mapping):
        return {key: _own(item) for key, item in value.items()}
    return [_own(item) for item in value] if isinstance(value, list) else value


def _import(path: str, trusted: tuple[str, ...]) -> type:
    if not path.startswith(trusted):
        raise ValueError(
            f"class path {path!r} is outside {', '.join(trusted)}: trust it by name if you know where it comes from"
        )
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"class path {path!r} names no class: {error}") from None
    # A module of ours also holds what it imports, and that is not what was trusted.
    if not isinstance(kind, type) or kind.__module__.partition(".")[0] != path.partition(".")[0]:
        raise ValueError(f"class path {path!r} names no class")
    return kind


def _revive(value: Any, trusted: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return functools.partial(_import(value["class_path"], trusted), **_arguments(value, trusted))
    if isinstance(value, list):
        return [_revive(item, trusted) for item in value]
    return value


def _arguments(spec: Mapping[str, Any], trusted: tuple[str, ...]) -> dict[str, Any]:
    return {key: _revive(item, trusted) for key, item in (spec.get("init_args") or {}).items()}


def build(spec: Mapping[str, Any], *, trusted: tuple[str, ...] = TRUSTED) -> nn.Module:
    """Makes the net that a spec describes, with fresh weights.

    Args:
        spec: What `net.spec` gave, or the `net` of a YAML.
        trusted: Beginnings of the class paths that may be imported; a spec from a stranger could name any code.

    Raises:
        ValueError: If a class path is not trusted or names no net.
    """
    if "class_path" not in spec:
        raise ValueError(f"a spec needs a class_path, got only {', '.join(spec) or 'an empty one'}")
    kind = _import(spec["class_path"], trusted)
    if not issubclass(kind, nn.Module):
        raise ValueError(f"class path {spec['class_path']!r} names no net")
    return kind(**_arguments(spec, trusted))


def parameters_of(kind: type) -> list[str]:
    """Lists the keyword arguments of a class, those included that it hands on to its bases by `**`."""
    names: list[str] = []
    settled: set[str] = set()
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        settled |= set(vars(base).get("settles", ()))
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name not in settled]


class Recorded(nn.Module):
    """Remembers the arguments that it was made with, and refuses unknown ones by name.

    A subclass that hands `**arguments` on lists in `settles` those that it chooses itself.
    """

    settles: ClassVar[tuple[str, ...]] = ()
    _recorded: dict[str, Any]

    def __new__(cls, *args: Any, **arguments: Any) -> "Recorded":
        """Checks the names of the arguments before any constructor runs."""
        allowed = parameters_of(cls)
        for name, value in arguments.items():
            if name not in allowed:
                close = get_close_matches(name, allowed, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise TypeError(f"{cls.__name__} takes no {name}={value!r}; {hint}It takes {', '.join(allowed)}")
        self: Recorded = super().__new__(cls)
        object.__setattr__(self, "_recorded", {name: _own(value) for name, value in arguments.items()})
        return self

    @property
    def spec(self) -> dict[str, Any]:
        """Class path and arguments in plain types, from which `vix.build` makes the same net with fresh weights."""
        return {"class_path": class_path(type(self)), "init_args": describe(self._recorded)}
