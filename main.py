"""The one entry: `python main.py fit --config experiments/vip_rope.yaml`; `python main.py --help` lists the rest."""

import importlib
import pkgutil
import sys
from difflib import get_close_matches
from pathlib import Path

HERE = Path(__file__).resolve().parent
TRAINER = {
    "fit": "train a net: --config experiments/vip_rope.yaml [--config experiments/overlays/digits.yaml]",
    "validate": "score the validation split: --ckpt_path <run folder or checkpoint>",
    "test": "score the official test split, once: --ckpt_path <run folder or checkpoint>",
    "predict": "write predictions for the test split, or for files: [path ...] --ckpt_path <run folder or checkpoint>",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; what it needs is imported only then.

    Args:
        arguments: As on the command line, which is taken where they are left out.

    Returns:
        The exit code: 0; 1 where data is missing or damaged; 2 where the command or its settings are wrong.
    """
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # commands lie in a folder that is listed without importing anything
    others = {module.name.replace("_", "-") for module in pkgutil.iter_modules([str(HERE / "vix" / "commands")])}
    if command in ("-h", "--help"):
        print(usage(others - TRAINER.keys()))
        return 0
    try:
        # `predict` is the trainer's where it names no files
        if command in others and (command not in TRAINER or names_files(rest)):
            code: int = importlib.import_module(f"vix.commands.{command.replace('-', '_')}").main(rest)
            return code
        if command in TRAINER:
            from vix.training.cli import run

            defaults = HERE / "experiments" / "defaults.yaml"
            return run([command, *rest], defaults=defaults, program=HERE / "main.py")
    except Exception as error:
        # imported only now: most commands need no data
        from datamodules import DataError

        if not isinstance(error, DataError):
            raise
        print(error, file=sys.stderr)
        return 1
    names = [*TRAINER, *sorted(others - TRAINER.keys())]
    close = get_close_matches(command, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(names)}"
    print(f"no command {command!r}; {hint}", file=sys.stderr)
    return 2


def names_files(arguments: list[str]) -> bool:
    """Whether a command line after `predict` names files or asks for help; every option takes one value."""
    rest = iter(arguments)
    for token in rest:
        if token in ("-h", "--help") or not token.startswith("-"):
            return True
        if "=" not in token:
            next(rest, None)
    return False


def usage(others: set[str]) -> str:
    """The commands, one a line."""
    lines = ["usage: python main.py <command> [options]", ""]
    lines += [f"  {name:<10}{what}" for name, what in TRAINER.items()]
    lines += [f"  {name:<10}see: python main.py {name} --help" for name in sorted(others)]
    lines += ["", "All options of a command: python main.py fit --help"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
