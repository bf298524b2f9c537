"""`python main.py save-pretrained --ckpt_path RUN --out FOLDER`: a run's net as a folder of the Hugging Face Hub.

The folder holds config.json, model.safetensors and README.md, the model card with the run's numbers;
`vix.hub.Pretrained.from_pretrained(FOLDER)` loads it. With --push it is uploaded, too.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Writes the folder.

    Args:
        arguments: What stands after `main.py save-pretrained`.

    Returns:
        0; 1 if the upload failed; 2 if the run is wrong, the folder is not empty or a package is missing.
    """
    options = parser().parse_args(arguments)
    missing = [name for name in ("huggingface_hub", "safetensors") if find_spec(name) is None]
    if missing:
        print(f"save-pretrained needs {' and '.join(missing)}: pip install {' '.join(missing)}", file=sys.stderr)
        return 2
    # `--help` need not wait for these.
    from httpx import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    from vix.hub import Pretrained
    from vix.training.errors import UsageError, first_line
    from vix.training.files import read_json
    from vix.training.runs import run_of
    from vix.training.trained import load_trained

    try:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise UsageError(f"--out {options.out}: is there and not empty; a folder is written as a whole")
        trained = load_trained(options.ckpt_path, trusted=options.trust)
        checkpoint, run = trained.checkpoint, run_of(trained.checkpoint.path)
        about = {
            "class_names": list(checkpoint.class_names),
            "mean": list(checkpoint.mean),
            "std": list(checkpoint.std),
            "image_size": list(checkpoint.image_size or ()),
            "channels": checkpoint.channels,
            "data": checkpoint.data["class_path"].rpartition(".")[2] if checkpoint.data else None,
            "results": read_json(run.results) if run else {},
        }
        model = Pretrained(trained.net, {name: value for name, value in about.items() if value})
        model.save_pretrained(options.out)
    except (UsageError, TypeError, ValueError) as error:
        print(first_line(error) if not isinstance(error, UsageError) else error, file=sys.stderr)
        return 2
    print(f"{options.out}: config.json, model.safetensors and the model card README.md")
    if options.push:
        try:
            print(model.push_to_hub(options.push, private=options.private))
        except (HfHubHTTPError, HTTPError, OSError) as error:
            print(f"--push {options.push}: {first_line(error)}\nThe folder {options.out} is whole.", file=sys.stderr)
            return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog="main.py save-pretrained", description=__doc__)
    made.add_argument("--ckpt_path", required=True, metavar="RUN", help="run folder or checkpoint")
    made.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to write; new or empty")
    made.add_argument("--push", metavar="USER/NAME", help="upload to this repository of the Hub, too")
    made.add_argument("--private", action="store_true", help="make that repository private")
    made.add_argument("--trust", type=lambda text: text.split(","), default=[], help="modules the run may name")
    return made
