"""`python main.py swap --ckpt_path RUN --config RECIPE`: another attention in a trained net, and its fine-tuning.

The accuracy on the validation split is measured before the swap, after it and after the fine-tuning; with --test that
on the test split too. The new run is one that `test`, `predict` and the other commands accept.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

DEFAULTS: dict[str, Any] = {
    "attention": None,
    "layers": None,
    "distillation": {},
    "epochs": 4,
    "lr": 5.0e-4,
    "weight_decay": 0.05,
    "warmup": 0.1,
    "ema": None,
}


def main(arguments: list[str]) -> int:
    """Swaps, fine-tunes and says what came out.

    Args:
        arguments: What stands after `main.py swap`.

    Returns:
        0, or 2 if the command, the run or the recipe is wrong.
    """
    options = parser().parse_args(arguments)
    # `--help` need not wait for these.
    from vix.training.console import quiet
    from vix.training.errors import UsageError, first_line

    try:
        with quiet():
            swap(options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except (TypeError, ValueError) as error:
        print(f"{options.config}: {first_line(error)}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog="main.py swap", description=__doc__)
    made.add_argument("--ckpt_path", required=True, metavar="RUN", help="run folder or checkpoint of a softmax net")
    made.add_argument(
        "--config", required=True, type=Path, metavar="RECIPE", help="such as experiments/swap/performer.yaml"
    )
    made.add_argument(
        "--layers", type=int, nargs="+", help="attentions to swap, counted from 0; the recipe's if left out"
    )
    made.add_argument("--epochs", type=int, help="of fine-tuning; the recipe's if left out")
    made.add_argument("--seed", type=int, default=0, help="of new weights, order and augmentation (default 0)")
    made.add_argument("--test", action="store_true", help="score the test split, too, with all three nets")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the run folders")
    made.add_argument("--trust", type=lambda text: text.split(","), default=[], help="modules the run may name")
    return made


def read_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe with what the command line says differently.

    Raises:
        UsageError: If it is no recipe.
    """
    from vix.training.errors import UsageError, did_you_mean
    from vix.training.sources import read_yaml

    given = read_yaml(options.config)
    for name in given:
        if name not in DEFAULTS:
            raise UsageError(f"{options.config}: {name}: no setting of a swap{did_you_mean(name, DEFAULTS)}")
    recipe = {**DEFAULTS, **given}
    if not isinstance(recipe["attention"], dict) or "class_path" not in recipe["attention"]:
        raise UsageError(f"{options.config}: attention: expected class_path and init_args of a kernel")
    for name in ("layers", "epochs"):
        if getattr(options, name) is not None:
            recipe[name] = getattr(options, name)
    if not isinstance(recipe["epochs"], int) or recipe["epochs"] < 1:
        raise UsageError(f"epochs: must be a positive whole number, got {recipe['epochs']}")
    return recipe


def swap(options: argparse.Namespace) -> None:
    """Does it all."""
    import copy

    import torch
    from pytorch_lightning import seed_everything

    import vix
    from vix.measure import summary
    from vix.training.checkpoint import TRUSTED, read_checkpoint
    from vix.training.classifier import ImageClassifier
    from vix.training.console import say
    from vix.training.distillation import DistilledClassifier
    from vix.training.errors import UsageError
    from vix.training.files import read_json, write_json
    from vix.training.optim import WarmupCosine
    from vix.training.runs import find_checkpoint, new_run

    recipe = read_recipe(options)
    checkpoint = read_checkpoint(find_checkpoint(options.ckpt_path, resume=False), trusted=options.trust)
    if checkpoint.model["net"] is None or checkpoint.data is None:
        raise UsageError(f"{checkpoint.path}: its net or its data has no spec, so it can be swapped from Python only")
    seed_everything(options.seed, verbose=False)
    teacher = ImageClassifier.load_from_checkpoint(checkpoint.path, trusted=options.trust)
    prefixes = (*TRUSTED, *(f"{module.rstrip('.')}." for module in options.trust))
    spec = swapped_spec(checkpoint.model["net"], recipe)
    # A spec's parts are revived by `build`; the weights are the teacher's, the kernels' own start near softmax.
    net: Any = vix.build(spec, trusted=prefixes)
    missing, unexpected = net.net.load_state_dict(teacher.net.state_dict(), strict=False)
    if unexpected or any(".attention." not in name for name in missing):
        raise UsageError(f"{checkpoint.path}: its weights do not fit: {', '.join([*unexpected, *missing][:3])}")
    data_spec = {**checkpoint.data, "init_args": {**checkpoint.data.get("init_args", {}), "seed": options.seed}}
    module = DistilledClassifier(
        net,
        teacher=copy.deepcopy(teacher.net),
        **recipe["distillation"],
        optimizer=_partial(torch.optim.AdamW, lr=recipe["lr"], weight_decay=recipe["weight_decay"]),
        schedule=WarmupCosine(warmup=recipe["warmup"]),
        label_smoothing=checkpoint.model.get("label_smoothing", 0.0),
    )
    kernel = recipe["attention"]["class_path"]
    name = kernel.rpartition(".")[2].lower()
    run = new_run(f"{checkpoint.experiment or 'net'}_swapped_{name}", options.runs)
    config = {
        "seed_everything": options.seed,
        "ema": recipe["ema"],
        "model": dict(module.hparams),
        "data": data_spec,
        "trainer": {"max_epochs": recipe["epochs"], "gradient_clip_val": 1.0, "use_distributed_sampler": False},
    }
    trainer, datamodule = trainer_for(run, config, dict(summary(net))), make_data(data_spec)
    say(f"{run.experiment}: {len(module.pairs)} attentions of {checkpoint.path} become {kernel}")
    scores = {
        "before": score(trainer, teacher, datamodule, options),
        "after": score(trainer, module, datamodule, options),
    }
    trainer.fit(module, datamodule=datamodule)
    best = ImageClassifier.load_from_checkpoint(run.best, trusted=options.trust)
    scores["fine_tuned"] = score(trainer, best, datamodule, options)
    about = {"from": str(checkpoint.path), "recipe": recipe, **scores}
    write_json(run.results, {**read_json(run.results), "swap": about})
    for when, words in {"before": "before the swap", "after": "after it", "fine_tuned": "after fine-tuning"}.items():
        say(f"{words:<18}" + "  ".join(f"{split} {100 * value:.2f} %" for split, value in scores[when].items()))
    say(f"run    {run.folder}\ntest   python main.py test --ckpt_path {run.folder}")


PLAIN_SOFTMAX = {"class_path": "vix.SoftmaxAttention", "init_args": {"fused": True, "dropout": 0.0}}


def swapped_spec(net: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The spec of a net with another attention; what the data says stands in the outer one."""
    from vix.training.plan import LINKED

    arguments = dict(net.get("init_args") or {})
    # The parser takes no class two levels down; left out, it is softmax, of which what is swapped leaves nothing.
    if recipe["layers"] is None or arguments.get("attention") == PLAIN_SOFTMAX:
        arguments.pop("attention", None)
    inner = {**net, "init_args": {name: value for name, value in arguments.items() if name not in LINKED}}
    linked = {name: value for name, value in arguments.items() if name in LINKED}
    return {
        "class_path": "vix.Swapped",
        "init_args": {"net": inner, "attention": recipe["attention"], "layers": recipe["layers"], **linked},
    }


def make_data(spec: dict[str, Any]) -> Any:
    """The datamodule of a spec that was checked when its checkpoint was read."""
    from jsonargparse import ArgumentParser
    from pytorch_lightning import LightningDataModule

    reader = ArgumentParser(exit_on_error=False)
    reader.add_subclass_arguments(LightningDataModule, "data")
    return reader.instantiate(reader.parse_object({"data": spec})).data


def trainer_for(run: Any, config: dict[str, Any], costs: dict[str, int]) -> "Trainer":
    """A trainer that keeps what `fit` keeps."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.callbacks import Callback

    from vix.training.callbacks import AveragedWeights, BestAndLast, LineProgress, RandomState, RunRecord
    from vix.training.loggers import MetricsTable

    checkpoints = BestAndLast(run, monitor="val/loss", data=config["data"])
    record = RunRecord(run, config=config, costs=costs, checkpoints=checkpoints)
    callbacks: list[Callback] = [record, RandomState()]
    if config["ema"] is not None:
        callbacks.append(AveragedWeights(config["ema"]))
    return Trainer(
        accelerator="auto",
        devices=1,
        num_sanity_val_steps=0,
        # The module is scored before it is trained: scores kept from inference mode could not be updated again.
        inference_mode=False,
        enable_model_summary=False,
        default_root_dir=run.folder,
        logger=[MetricsTable(run)],
        callbacks=[*callbacks, checkpoints, LineProgress()],
        **config["trainer"],
    )


def score(trainer: "Trainer", module: Any, datamodule: Any, options: argparse.Namespace) -> dict[str, float]:
    """Top-1 accuracy on the validation split, and on the test split where it was asked for."""
    (validated,) = trainer.validate(module, datamodule=datamodule, verbose=False)
    found = {"validation": validated["val/top1"]}
    if options.test:
        (tested,) = trainer.test(module, datamodule=datamodule, verbose=False)
        found["test"] = tested["test/top1"]
    return found


def _partial(kind: Any, **arguments: Any) -> Any:
    from functools import partial

    return partial(kind, **arguments)
