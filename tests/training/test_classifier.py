"""The LightningModule: what it learns, logs and keeps, from Python and with any net."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW

import vix
from tests.training.standin import TINY, Foreign, Noise, fit, net
from vix.training import ImageClassifier, WarmupCosine
from vix.training.checkpoint import read_checkpoint
from vix.training.classifier import cross_entropy
from vix.training.console import quiet
from vix.training.errors import UsageError


def classifier(**options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(net(), optimizer=partial(AdamW, lr=1e-2), schedule=WarmupCosine(), **options)


def test_it_learns_and_its_scores_are_means_over_images(tmp_path: Path) -> None:
    module = classifier()
    trainer, _ = fit(module, tmp_path, max_epochs=15)
    batch = Noise()._loader(13).dataset
    whole = [torch.cat(parts) for parts in zip(*batch, strict=True)]
    with torch.no_grad():
        logits = module.eval()(whole[0])
    scores = trainer.callback_metrics
    torch.testing.assert_close(scores["val/loss"], F.cross_entropy(logits, whole[1]))
    torch.testing.assert_close(scores["val/top1"], (logits.argmax(-1) == whole[1]).float().mean())
    assert scores["val/top1"] > 0.7
    assert scores["val/top3"] == 1
    assert scores["train/loss"] < 0.8


def test_label_smoothing_is_in_the_training_loss_alone(tmp_path: Path) -> None:
    plain, smooth = (fit(classifier(label_smoothing=value), tmp_path, max_epochs=1)[0] for value in (0.0, 0.5))
    assert smooth.callback_metrics["train/loss"] != plain.callback_metrics["train/loss"]
    logits, labels = torch.randn(5, 4), torch.arange(5) % 4
    torch.testing.assert_close(cross_entropy(logits, labels, 0.1), F.cross_entropy(logits, labels, label_smoothing=0.1))


def test_the_loss_is_taken_in_full_precision() -> None:
    assert cross_entropy(torch.randn(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype is torch.float32
    assert cross_entropy(torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])).dtype is torch.float64


def test_a_checkpoint_made_from_python_is_plain_and_rebuilds_the_whole_classifier(tmp_path: Path) -> None:
    module = classifier(label_smoothing=0.1)
    _, run = fit(module, tmp_path)
    content = torch.load(run.last, weights_only=True)
    assert content["vix"]["class_names"] == ["dark", "grey", "bright"]
    assert (content["vix"]["mean"], content["vix"]["std"]) == ([0.5], [0.25])
    assert (content["vix"]["image_size"], content["vix"]["channels"]) == ([4, 4], 1)
    assert content["hyper_parameters"]["net"]["class_path"] == "vix.ViP"
    again = ImageClassifier.load_from_checkpoint(run.last)
    assert again.hparams == module.hparams
    images = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(again.eval()(images), module.eval()(images), rtol=0, atol=0)
    # a classifier loaded so can be trained and saved again
    fit(again.train(), tmp_path / "again", max_epochs=1)


def test_a_net_without_a_spec_is_given_when_it_is_loaded(tmp_path: Path) -> None:
    module = ImageClassifier(Foreign())
    _, run = fit(module, tmp_path, max_epochs=1)
    with pytest.raises(UsageError, match="its net has no spec; give the net"):
        ImageClassifier.load_from_checkpoint(run.last)
    again = ImageClassifier.load_from_checkpoint(run.last, net=Foreign())
    torch.testing.assert_close(again.state_dict(), module.state_dict())


def test_weights_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    _, run = fit(classifier(), tmp_path, max_epochs=1)
    with pytest.raises(UsageError, match=r"does not fit the net: it has net\.\S+ as \(.*\), not \(.*\)"):
        ImageClassifier.load_from_checkpoint(run.last, net=net(dim=16))


def test_weights_of_a_wrapping_compiler_are_understood(tmp_path: Path) -> None:
    module = classifier()
    _, run = fit(module, tmp_path, max_epochs=1)
    content = torch.load(run.last, weights_only=True)
    content["state_dict"] = {k.replace("net.", "net._orig_mod.", 1): v for k, v in content["state_dict"].items()}
    torch.save(content, run.last)
    torch.testing.assert_close(ImageClassifier.load_from_checkpoint(run.last).state_dict(), module.state_dict())


def test_compiling_happens_once_in_place_with_the_options_given(monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls = classifier(compile_net={"dynamic": False}), []
    monkeypatch.setattr(module.net, "compile", lambda **options: calls.append(options))
    module.setup("fit")
    module.setup("validate")
    assert calls == [{"dynamic": False}]


@pytest.mark.slow
def test_a_compiled_net_trains_and_keeps_its_names(tmp_path: Path) -> None:
    module = classifier(compile_net={"backend": "aot_eager"})
    names = module.state_dict().keys()
    _, run = fit(module, tmp_path, max_epochs=1)
    assert torch.load(run.last, weights_only=True)["state_dict"].keys() == names


def test_checkpointing_gives_the_same_gradients() -> None:
    images, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 1, 2])
    gradients = []
    for recompute in (False, True):
        module = classifier(grad_checkpointing=recompute)
        cross_entropy(module(images), labels).backward()
        gradients.append({name: each.grad for name, each in module.named_parameters()})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, got 1.0"),
        ({"grad_checkpointing": True, "net": nn.Linear(1, 1)}, "Linear has none"),
    ],
)
def test_impossible_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**{"net": net(), **options})


def test_the_rate_of_the_finder_is_used_and_kept(tmp_path: Path) -> None:
    module = ImageClassifier(net(), optimizer=partial(SGD, lr=1.0))
    module.lr = 0.25
    trainer, run = fit(module, tmp_path, max_epochs=1)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.25
    assert read_checkpoint(run.last).model["optimizer"]["init_args"]["lr"] == 0.25


def test_lightnings_rate_finder_works(tmp_path: Path) -> None:
    from pytorch_lightning import Trainer
    from pytorch_lightning.tuner import Tuner

    module = classifier()
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        Tuner(trainer).lr_find(module, datamodule=Noise(batch_size=1), num_training=20, early_stop_threshold=None)
    assert module.lr
    assert not list(tmp_path.iterdir())


def test_it_works_with_any_net_of_ours() -> None:
    for system in vix.SYSTEMS.values():
        allowed = set(vix.spec.parameters_of(system))
        made = system(image_size=8, num_classes=3, channels=1, **{k: v for k, v in TINY.items() if k in allowed})
        spec = ImageClassifier(made).hparams["net"]
        assert type(vix.build(spec)) is system
