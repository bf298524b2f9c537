"""What is refused although each value alone would pass: contradictions, impossible nets, other nets than before."""

import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from vix.spec import describe
from vix.training.checkpoint import Checkpoint
from vix.training.console import say
from vix.training.errors import UsageError, first_line
from vix.training.plan import LINKED
from vix.training.sources import COMMAND_LINE, CommandLine, flatten
from vix.training.wording import arguments_of

# Arguments of a net that change how it trains and not what it is.
TRAINING_ONLY = frozenset({"dropout", "emb_dropout", "drop_path"})
MISSING = object()
# What a constructor raises for arguments that it cannot take, on purpose or not.
BY_CONSTRUCTORS = (TypeError, ValueError, AssertionError, AttributeError, LookupError, RuntimeError)


def refuse_contradiction(line: CommandLine, key: str, value: Any, by: str) -> None:
    """Refuses what the user set where something else decides, unless it is the same.

    Args:
        line: What the user gave.
        key: Dotted key of what is decided elsewhere.
        value: What it is.
        by: What decides, in words.

    Raises:
        UsageError: If the user set something else.
    """
    setting = line.find(key)
    if setting is not None and not _same(setting.value, value):
        raise UsageError(f"{setting.source}: {key}: {_show(setting.value)}, but {by} says {_show(value)}; leave it out")


def refuse_sharding(line: CommandLine, strategy: Any) -> None:
    """Refuses Lightning's `ModelParallelStrategy` (FSDP2), for what docs/faults.md says.

    Raises:
        UsageError: If it is asked for.
    """
    if str(getattr(strategy, "class_path", "")).endswith(".ModelParallelStrategy"):
        setting = line.find("trainer.strategy") or line.find("trainer.strategy.class_path")
        source = setting.source if setting else COMMAND_LINE
        raise UsageError(
            f"{source}: trainer.strategy: ModelParallelStrategy (FSDP2) is not offered, since a resumed run would end "
            "differently; ddp is"
        )


def construction_refusal(error: Exception, line: CommandLine) -> Exception:
    """What to raise for an error of a constructor: with the file and the key that the message is about."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UsageError):
            return cause
        if not isinstance(cause, BY_CONSTRUCTORS) and isinstance(cause, Exception):
            # a link asked the data for a fact, and the data's own error is the one to show
            return cause
        deepest, cause = cause, cause.__cause__
    message = first_line(deepest)
    if found := re.search(r"argument after \*\* must be a mapping, not (\w+)", message):
        message = f"expected a mapping, got {found[1]}"
        about = next((each for each in reversed(line.settings) if type(each.value).__name__ == found[1]), None)
        return UsageError(f"{about.source}: {about.key}: {message}" if about else message)
    return refusal(message, line)


def refusal(message: str, line: CommandLine, groups: tuple[str, ...] = ("model.", "data.")) -> UsageError:
    """An error with a library's message, and before it the file and key of the first setting that it speaks of.

    Args:
        message: Of one line.
        line: What the user gave.
        groups: Beginnings of the keys that may be meant.
    """
    for word in re.findall(r"\w+", message):
        for setting in reversed(line.settings):
            if setting.key.startswith(groups) and word in (setting.key.rpartition(".")[2], setting.value):
                return UsageError(f"{setting.source}: {setting.key}: {message}")
    return UsageError(message if len(groups) > 1 else f"{groups[0].rstrip('.')}: {message}")


def refuse_other_net(checkpoint: Checkpoint, net: Mapping[str, Any], line: CommandLine) -> None:
    """Refuses a net that is not the checkpoint's; rates of dropout may differ.

    Raises:
        UsageError: If class or arguments differ.
    """
    saved = checkpoint.model.get("net")
    if saved is None:
        return
    if net["class_path"] != saved["class_path"]:
        raise _other(line, "class_path", net["class_path"], saved["class_path"], checkpoint)
    new, old = net.get("init_args") or {}, saved.get("init_args") or {}
    defaults = _defaults(net["class_path"]) if new.keys() != old.keys() else {}
    for name in sorted((new.keys() | old.keys()) - TRAINING_ONLY):
        now, then = (arguments.get(name, defaults.get(name, MISSING)) for arguments in (new, old))
        if not _same(now, then) and MISSING not in (now, then):
            raise _other(line, name, now, then, checkpoint)


def say_differences(checkpoint: Checkpoint, described: Mapping[str, Any], most: int = 8) -> None:
    """Tells in which settings a resumed training differs from the checkpoint's; the user's word holds."""
    say(f"resuming {checkpoint.path} after epoch {checkpoint.epoch}, step {checkpoint.step}")
    then = dict(flatten({"model": checkpoint.model, "data": checkpoint.data or {}}))
    now = dict(flatten({"model": described["model"], "data": described["data"]}))
    changed = [key for key in now if key in then and not _same(now[key], then[key])]
    for key in changed[:most]:
        say(f"  {key}: {_show(now[key])} (in the checkpoint: {_show(then[key])})")
    if len(changed) > most:
        say(f"  and {len(changed) - most} more")


def _other(line: CommandLine, name: str, now: Any, then: Any, checkpoint: Checkpoint) -> UsageError:
    setting = line.find(f"model.net.{name}")
    if setting is None and name in LINKED:
        return UsageError(
            f"the data has {name} {_show(now)}, but the net of {checkpoint.path} was made for {_show(then)}"
        )
    return UsageError(
        f"{setting.source if setting else COMMAND_LINE}: model.net.{name}: {_show(now)}, but the net of "
        f"{checkpoint.path} has {_show(then)}\nA trained net cannot be changed: leave it out, or train anew without "
        "--ckpt_path"
    )


def _defaults(class_path: str) -> dict[str, Any]:
    """Default values of a class's arguments, the nearest class's where several have one."""
    empty = inspect.Parameter.empty
    return {name: each.default for name, each in arguments_of(class_path).items() if each.default is not empty}


def _same(one: Any, other: Any) -> bool:
    """Whether two values mean the same: 8 and (8, 8), lists and tuples, 1 and 1.0, a class and its spec."""
    one, other = (describe(value) if isinstance(value, type | partial) else value for value in (one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping) and "class_path" in one:
        if one["class_path"] != other.get("class_path"):
            return False
        defaults = _defaults(one["class_path"])
        left, right = ({**defaults, **(value.get("init_args") or {})} for value in (one, other))
        return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, list | tuple) and isinstance(other, int) and not isinstance(other, bool):
        return len(one) == 2 and all(item == other for item in one)
    if isinstance(other, list | tuple):
        return isinstance(one, int) and not isinstance(one, bool) and _same(other, one)
    return bool(one == other)


def _show(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list | tuple) else str(value)
