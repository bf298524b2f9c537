"""`fit`, `validate`, `test` and `predict`: Lightning's command line with our links, refusals and run folders."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import ArgumentError
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from torch import nn

from vix.measure import parameters, summary
from vix.training.batchnorm import SharedBatchNorms
from vix.training.callbacks import (
    AveragedWeights,
    BestAndLast,
    LineProgress,
    PredictionTable,
    RandomState,
    RankSeed,
    RichProgress,
    RunRecord,
    WandbRecord,
)
from vix.training.callbacks.predictions import PREDICT_FILE
from vix.training.classifier import ImageClassifier, cross_entropy
from vix.training.console import calibration_line, cost_line, quiet, say, scores_line
from vix.training.errors import Stopped, StorageError, TrainingError, UsageError, first_line
from vix.training.files import WholeCheckpoints
from vix.training.finders import FINDERS, suggest
from vix.training.loggers import MetricsTable, WandbSettings, wandb_files, wandb_logger
from vix.training.memory import is_exhausted, release, what_fits
from vix.training.plan import LINKED, OWN, Plan, make_plan, overlays
from vix.training.processes import is_first, writes_files
from vix.training.refusals import (
    BY_CONSTRUCTORS,
    construction_refusal,
    refusal,
    refuse_contradiction,
    refuse_other_net,
    refuse_sharding,
    say_differences,
)
from vix.training.runs import Run, claimed, discard
from vix.training.seeds import repeat
from vix.training.signals import Signals, caught, exit_code, requeue_job
from vix.training.signals import name as signal_name
from vix.training.sources import COMMAND_LINE, read_command_line
from vix.training.wandb_logger import SturdyWandbLogger, close_wandb
from vix.training.watch import Watch
from vix.training.wording import explain
from vix.traits import traits

COMMANDS = ("fit", "validate", "test", "predict")
# Belongs to one call of the command, not to the run.
NOT_KEPT = ("config", "ckpt_path", "resume", "trust", "seeds", "find", "image_size", "verbose", "return_predictions")


def run(arguments: Sequence[str], *, defaults: Path, program: Path) -> int:
    """Runs one command.

    Args:
        arguments: The command and its options, as after `main.py`.
        defaults: The recipe's YAML.
        program: The entry, for the processes of `--seeds`.

    Returns:
        The exit code: 0; 1 where a file cannot be written or training cannot go on; 2 where the user's input was
        wrong; 128 and the signal's number where one asked for the end.
    """
    run: Run | None = None
    try:
        with quiet():
            line = read_command_line(arguments, OWN)
            if "seeds" in line.own:
                return repeat(line, program)
            with caught() as signals:
                plan = make_plan(line, defaults=defaults)
                run = plan.run
                VixCLI(plan, signals)
    except UsageError as error:
        tell(error)
        return 2
    except (StorageError, TrainingError) as error:
        tell(error)
        if is_first() and run is not None:
            print(way_on(run), file=sys.stderr)
        return 1
    except Stopped as stop:
        if not is_first():
            # the first process speaks for all; a launcher takes any other code for an accident
            return 0
        print(f"stopped by {signal_name(stop.number)}{'' if stop.saved else ', at once'}", file=sys.stderr)
        if run is not None and line.command == "fit":
            print(way_on(run), file=sys.stderr)
        if stop.saved and stop.number == signals.requeue:
            print(requeue_job(), file=sys.stderr)
        return exit_code(stop)
    except SystemExit as end:
        # help, printed configurations and Lightning's interrupts end this way
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def tell(error: Exception) -> None:
    """Prints an error's few words, and where debugging is asked for its whole story.

    What fails while something that failed is cleared away is not the cause: the first error is told.
    """
    if os.environ.get("JSONARGPARSE_DEBUG", "").lower() not in ("", "0", "false"):
        traceback.print_exc()
    while isinstance(error.__context__, StorageError | TrainingError):
        error = error.__context__
    print(error, file=sys.stderr)


def way_on(run: Run) -> str:
    """One line on how to go on with a run that did not come to its end."""
    if run.last.is_file() or run.best.is_file():
        return f"to go on from the last whole checkpoint: python main.py fit --ckpt_path {run.folder}"
    return "no checkpoint had been written yet: the same command begins anew"


class VixCLI(LightningCLI):
    """Lightning's command line around `ImageClassifier`.

    Args:
        plan: What is to be done.
        signals: Says whether the end is wanted.
    """

    def __init__(self, plan: Plan, signals: Signals) -> None:
        self.plan = plan
        self.run_folder = plan.run
        self.signals = signals
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            ImageClassifier,
            LightningDataModule,
            save_config_callback=None,
            trainer_defaults={"enable_model_summary": False},
            parser_kwargs={**strict, **{command: dict(strict) for command in COMMANDS}},
            subclass_mode_data=True,
            args=list(plan.arguments),
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # the parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands; weights are always loaded without executing anything."""
        return {command: skipped | {"weights_only"} for command, skipped in LightningCLI.subcommands().items()}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The seed, always a number, so that every run can be repeated."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of weights, order and augmentation.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own options and the links."""
        parser.add_argument("--runs", type=str, default="runs", help="Folder that holds the run folders.")
        parser.add_argument(
            "--trust", type=str, default="", help="Modules, joined by commas, whose classes a checkpoint may name."
        )
        parser.add_argument(
            "--monitor",
            type=str | None,
            default="val/top1",
            help="Score by which the best epoch is chosen: val/top1, val/loss ...; null takes the last.",
        )
        parser.add_argument(
            "--ema", type=float | None, default=None, help="Decay of the weights' moving average, such as 0.999."
        )
        parser.add_argument(
            "--save_every", type=int, default=0, help="Optimiser steps between savings within an epoch, 0 for none."
        )
        parser.add_argument("--resume", type=str, default="", help="fit: auto goes on with this command's last run.")
        parser.add_argument("--seeds", type=str, default="", help="fit: train once for each, such as 0,1,2.")
        parser.add_argument(
            "--image_size",
            type=str,
            default="",
            help="test, validate, predict: have images of another size: 64, 64x48.",
        )
        parser.add_argument("--find", type=str, default="", help="fit: suggest this, lr or batch_size, and stop.")
        parser.add_class_arguments(WandbSettings, "wandb")
        for name in LINKED:
            target = f"model.net.init_args.{name}"
            parser.link_arguments(f"data.{name}", target, compute_fn=self._agreed(name), apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _agreed(self, name: str) -> Callable[[Any], Any]:
        def agreed(fact: Any) -> Any:
            refuse_contradiction(self.plan.line, f"model.net.{name}", fact, f"the data ({self._data_class()})")
            return fact

        return agreed

    def _data_class(self) -> str:
        return str(self.config[self.config.subcommand].data.class_path)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses; a complaint comes out in a few words."""
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            keys = self._parser(self.plan.line.command).get_defaults().keys()
            raise UsageError(explain(str(error), self.plan.line, keys)) from error
        config = self.config[self.config.subcommand]
        refuse_contradiction(self.plan.line, "data.seed", config.seed_everything, "seed_everything")
        if not 0 <= config.seed_everything < 1 << 32:
            raise self._out_of_range("seed_everything", f"from 0 to {(1 << 32) - 1}", config.seed_everything)
        if config.ema is not None and not 0 <= config.ema < 1:
            raise self._out_of_range("ema", "at least 0 and below 1, or null", config.ema)
        refuse_sharding(self.plan.line, config.trainer.strategy)
        self.find = self.plan.line.own.get("find", "")
        if self.find and (self.find not in FINDERS or self.plan.line.command != "fit"):
            raise UsageError(f"--find {self.find}: fit can find {' or '.join(FINDERS)}")

    def _out_of_range(self, key: str, allowed: str, value: Any) -> UsageError:
        setting = self.plan.line.find(key)
        return UsageError(f"{setting.source if setting else COMMAND_LINE}: {key}: must be {allowed}, got {value}")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the checkpoint's settings were put before the user's, who therefore has the last word."""

    # the objects

    def instantiate_classes(self) -> None:
        """Builds data, net and trainer; what they refuse comes out as short as what the parser refuses."""
        try:
            self.config_init = self.parser.instantiate(self.config)
        except BY_CONSTRUCTORS as error:
            raise construction_refusal(error, self.plan.line) from error
        self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")
        try:
            # what an optimiser refuses it would otherwise say in the midst of training
            self.model.optimizer([{"params": [nn.Parameter(torch.zeros(1))], "param_names": ["weight"]}])
        except BY_CONSTRUCTORS as error:
            raise refusal(first_line(error), self.plan.line, ("model.optimizer.",)) from error
        self.costs = net_costs(self.model.net)
        if not self.costs["parameters"]:
            raise UsageError(f"model.net: {type(self.model.net).__name__} has no parameter to train")
        self.described = self._describe()
        if self.plan.checkpoint is not None:
            refuse_other_net(self.plan.checkpoint, self.described["model"]["net"], self.plan.line)
            if "image_size" in self.plan.line.own:
                self.model.carried = self.plan.checkpoint.weights
        try:
            self.trainer = self.instantiate_trainer()
        except (*BY_CONSTRUCTORS, ImportError, MisconfigurationException) as error:
            raise refusal(first_line(error), self.plan.line, ("trainer.",)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer whose files all go to the run's folder."""
        config = self._get(self.config_init, "trainer")
        self.kinds = {**traits(self.model.net), "data": type(self.datamodule).__name__}
        self.wandb_settings: WandbSettings = self._get(self.config_init, "wandb")
        self.wandb: SturdyWandbLogger | None = None
        self.watch = Watch()
        loggers, norms = self._loggers(config), list[Any]()
        callbacks = [self.watch, *([] if self.find else _listed(config.callbacks)), *self._callbacks(config)]
        if config.sync_batchnorm:
            norms, kwargs["sync_batchnorm"] = [SharedBatchNorms()], False
        for plugin in _listed(config.plugins):
            if isinstance(plugin, SLURMEnvironment):
                self.signals.requeue = plugin.requeue_signal if plugin.auto_requeue else None
        return super().instantiate_trainer(
            callbacks=callbacks,
            logger=loggers,
            plugins=[WholeCheckpoints(), *norms, *_listed(config.plugins)],
            default_root_dir=self.run_folder.folder,
            **kwargs,
        )

    def _callbacks(self, config: Any) -> list[Callback]:
        callbacks: list[Callback] = []
        if self.find:
            return callbacks
        self.checkpoints = BestAndLast(
            self.run_folder,
            monitor=self._get(self.config, "monitor"),
            data=self.described["data"],
            every=self._get(self.config, "save_every"),
            signals=self.signals,
        )
        self.record = RunRecord(
            self.run_folder,
            config=self.described,
            costs=self.costs,
            checkpoints=self.checkpoints,
            overlays=overlays(self.plan.line),
            asked=self.plan.asked,
        )
        if self.subcommand == "fit":
            # what is restored comes after what is derived
            callbacks += [self.record, RankSeed(self._get(self.config, "seed_everything")), RandomState()]
            ema = self._get(self.config, "ema")
            if ema is not None:
                callbacks += [AveragedWeights(ema)]
            if config.enable_checkpointing is not False:
                callbacks += [self.checkpoints]
            callbacks += self._wandb_record()
        elif self.plan.checkpoint is not None and self.subcommand in ("test", "predict"):
            size = self.plan.checkpoint.image_size if "image_size" in self.plan.line.own else None
            at = "_{}x{}".format(*size) if size else ""
            self.predictions = PredictionTable(self.run_folder, self.plan.checkpoint.path, at=at)
            callbacks += [self.predictions]
        if config.enable_progress_bar is not False:
            callbacks += [RichProgress() if sys.stdout.isatty() else LineProgress()]
        return callbacks

    def _wandb_record(self) -> list[Callback]:
        if self.wandb is None:
            return []
        facts = {**self.costs, **self.kinds, **self.record.circumstances}
        return [
            WandbRecord(
                self.run_folder,
                self.wandb,
                config=self.described,
                facts=facts,
                checkpoints=self.checkpoints,
                images=self.wandb_settings.images,
                upload_best=self.wandb_settings.upload_best,
            )
        ]

    def _loggers(self, config: Any) -> list[Logger] | bool:
        # evaluating adds nothing to a run but what PredictionTable writes
        if self.subcommand != "fit" or config.fast_dev_run or self.find:
            return False
        self.metrics = MetricsTable(self.run_folder)
        if config.logger is None or config.logger is True:
            self.wandb = wandb_logger(self.run_folder, self.wandb_settings, kinds=self.kinds)
            return [self.metrics, *([self.wandb] if self.wandb else [])]
        return [self.metrics, *_listed(config.logger or None)]

    def _describe(self) -> dict[str, Any]:
        """The effective configuration in plain types, linked values included."""
        parser, config = self._parser(self.subcommand), self.config[self.subcommand].clone()
        for key in NOT_KEPT:
            config.pop(key, None)
        described: dict[str, Any] = yaml.safe_load(
            parser.dump(config, format="yaml", skip_unset=False, skip_validation=True)
        )
        described["data"].setdefault("init_args", {})["seed"] = described["seed_everything"]
        if self.model.hparams["net"] is None:
            net = described["model"]["net"]
            net["init_args"] = {**net.get("init_args", {}), **{name: _plain(self.datamodule, name) for name in LINKED}}
            self.model.hparams["net"] = net
        described["model"]["net"] = self.model.hparams["net"]
        return described

    # the commands; Lightning's command line calls these instead of the trainer's

    def fit(self, model: ImageClassifier, datamodule: Any, ckpt_path: str | None = None) -> None:
        """Trains, and says what came out and where it is."""
        if is_first():
            say(
                f"{self.run_folder.experiment}: {self.described['model']['net']['class_path']}, {cost_line(self.costs)}"
            )
            if self.plan.checkpoint is not None:
                say_differences(self.plan.checkpoint, self.described)
        if self.find:
            try:
                say(suggest(self.find, self.trainer, model, datamodule))
            finally:
                discard(self.run_folder)
            return
        held = claimed(self.run_folder) if writes_files(self.trainer) else nullcontext()
        with wandb_files(self.run_folder), self._closing(), held:
            if self.plan.checkpoint is not None and not self.plan.fresh and writes_files(self.trainer):
                self.metrics.resume(self.plan.checkpoint.step)
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        if writes_files(self.trainer):
            say(closing_block(self.run_folder, self.checkpoints.best, self.checkpoints.last))

    def validate(self, model: ImageClassifier, datamodule: Any, **options: Any) -> None:
        """Scores the validation split."""
        with self._closing():
            self.trainer.validate(model, datamodule=datamodule, weights_only=True, **{**options, "verbose": False})
        self._say_scores("val")

    def test(self, model: ImageClassifier, datamodule: Any, **options: Any) -> None:
        """Scores the official test split; the run keeps the scores and what was predicted for each image."""
        with self._closing():
            self.trainer.test(model, datamodule=datamodule, weights_only=True, **{**options, "verbose": False})
        self._say_scores("test")
        if writes_files(self.trainer):
            say(calibration_line(self.predictions.evaluation, getattr(datamodule, "class_names", ())))
            rows = self.predictions.named(self.run_folder.predictions)
            say(f"added to {self.run_folder.results}; one row an image in {rows}")

    def predict(self, model: ImageClassifier, datamodule: Any, **options: Any) -> None:
        """Writes what is predicted for each image of the test split."""
        with self._closing():
            options["return_predictions"] = False
            self.trainer.predict(model, datamodule=datamodule, weights_only=True, **options)
        if writes_files(self.trainer):
            say(f"one row an image in {self.predictions.named(self.run_folder.folder / PREDICT_FILE)}")

    def _say_scores(self, split: str) -> None:
        assert self.plan.checkpoint is not None
        if self.trainer.is_global_zero:
            scores = {key: value.item() for key, value in self.trainer.callback_metrics.items()}
            say(f"{self.plan.checkpoint.path} (epoch {self.plan.checkpoint.epoch})")
            say(scores_line(split, scores, split))

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Ends W&B's run, words Lightning's refusals, and removes the folder of a run that never began."""
        failed = True
        try:
            yield
            failed = False
        except MisconfigurationException as error:
            raise refusal(first_line(error), self.plan.line, ("trainer.",)) from error
        except (RuntimeError, MemoryError) as error:
            if is_exhausted(error):
                raise self._memory_advice(error) from None
            if told := self.watch.explain(error):
                raise told from error
            raise
        finally:
            self.watch.end()
            self.signals.watched = False
            close_wandb(failed=failed)
            if failed and self.plan.fresh and not self.record.begun and is_first():
                discard(self.run_folder)

    def _memory_advice(self, error: BaseException) -> TrainingError:
        """What to say where memory did not suffice: what was tried and fits."""
        device, batch = self.trainer.strategy.root_device, self.model.batch
        release(error, device)
        if batch is None:
            return TrainingError(f"out of memory before the first step: {first_line(error)}")
        accumulated = self.trainer.accumulate_grad_batches
        found = what_fits(self.model.net, batch, cross_entropy, device, accumulated)
        what = f"out of memory on {device} with batches of {len(batch.images)} images"
        if not found:
            return TrainingError(f"{what}, and not even one image fits: take a smaller net or a larger patch_size")
        return TrainingError("\n".join([f"{what}; what was tried and fits, with as many images a step:", *found]))


def net_costs(net: nn.Module) -> dict[str, int]:
    """Parameters, and for nets of ours tokens and operations."""
    if hasattr(net, "tokens"):
        return dict(summary(cast(Any, net)))
    return {"parameters": parameters(net)}


def closing_block(run: Run, best: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """What a user wants to know when training is done."""
    lines = (
        [scores_line("best", best), scores_line("last", last)] if last else ["no validation, so there is no best epoch"]
    )
    return "\n".join([*lines, f"run    {run.folder}", f"test   python main.py test --ckpt_path {run.folder}"])


def _listed(value: Any) -> list[Any]:
    """Several, one or none, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(data: Any, name: str) -> Any:
    value = getattr(data, name)
    return list(value) if isinstance(value, tuple) else value
