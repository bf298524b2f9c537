"""Trained nets as folders of the Hugging Face Hub: config.json, model.safetensors and a model card with the numbers.

    from vix.hub import Pretrained
    Pretrained(net, about).save_pretrained("my-net")          # a local folder; push_to_hub("me/my-net") uploads it
    net = Pretrained.from_pretrained("my-net").net            # or "me/my-net"

`huggingface_hub` and `safetensors` are needed for this alone. Nothing in a folder is executed: weights are safetensors,
and config.json may name classes of `vix` only.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult, ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vix.spec import TRUSTED, build

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# What `about` may hold beside the numbers, which are free.
FACTS = ("class_names", "mean", "std", "image_size", "channels", "data", "results")


class Pretrained(nn.Module, ModelHubMixin, library_name="vix"):
    """A net with what is known of its data and its training, in huggingface_hub's terms.

    Args:
        net: A net with a `spec`.
        about: Plain types: class_names, mean, std, image_size, channels, `data` (the data set's name), and `results`,
            what a run's results.json says.

    Raises:
        ValueError: If `about` has another entry.
        TypeError: If the net has no spec.
    """

    def __init__(self, net: nn.Module, about: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if not isinstance(getattr(net, "spec", None), Mapping):
            raise TypeError(f"{type(net).__name__} has no spec to build it from again: give a net of vix")
        if unknown := sorted(set(about or {}) - set(FACTS)):
            raise ValueError(f"about takes {', '.join(FACTS)}, got {unknown[0]}")
        self.net = net
        self.about = dict(about or {})
        self._hub_mixin_config = {**self.about, "spec": net.spec}

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images (b, channels, height, width) to logits."""
        logits: Tensor = self.net(images)
        return logits

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.net.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # fewer arguments: a net is made from its config alone
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        config: dict[str, Any] | None = None,
        trusted: tuple[str, ...] = TRUSTED,
    ) -> Self:
        """Builds the net that config.json describes and loads the weights, all of them."""
        if not isinstance(config, dict) or not isinstance(config.get("spec"), dict):
            raise ValueError(f"{model_id}: its {CONFIG} describes no net of vix")
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        try:
            net = build(config["spec"], trusted=trusted)
            weights = load_file(path)
        except (TypeError, ValueError, OSError, SafetensorError) as error:
            raise ValueError(f"{model_id}: {str(error).splitlines()[0]}") from error
        own = net.state_dict()
        wrong = sorted(own.keys() ^ weights.keys())
        wrong += [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
        if wrong:
            raise ValueError(f"{model_id}: {WEIGHTS} does not fit the net of {CONFIG}: {wrong[0]} differs")
        net.load_state_dict(weights)
        return cls(net.eval(), {name: config[name] for name in FACTS if name in config})

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Writes the card: what it is, how to use it, and what the run measured."""
        return ModelCard(f"---\n{self._card_data().to_yaml()}\n---\n\n{card(self.net, self.about)}")

    def _card_data(self) -> ModelCardData:
        name, data = type(self.net).__name__, self.about.get("data")
        measured = scores(self.about.get("results") or {})
        facts: dict[str, Any] = {}
        if data and measured:
            # huggingface_hub wants a name with its results
            facts["model_name"] = name
            facts["eval_results"] = [
                EvalResult(
                    task_type="image-classification",
                    dataset_type=data.lower(),
                    dataset_name=data,
                    dataset_split=split,
                    metric_type="accuracy",
                    metric_value=value,
                )
                for split, value in measured.items()
            ]
        return ModelCardData(
            library_name="vix",
            pipeline_tag="image-classification",
            tags=["vision-transformer", "vix", name.lower(), "model_hub_mixin"],
            **facts,
        )


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 accuracies by split: of the epoch that was chosen on validation, and of the test where there was one."""
    found = {}
    for split, place, key in (("validation", "best", "val/top1"), ("test", "test", "test/top1")):
        value = (results.get(place) or {}).get(key)
        if isinstance(value, int | float):
            found[split] = float(value)
    return found


def card(net: Any, about: Mapping[str, Any]) -> str:
    """The card's text."""
    results = about.get("results") or {}
    name = type(net).__name__
    size = " x ".join(str(each) for each in (net.channels, *net.image_size))
    lines = [
        f"# {name}" + (f" trained on {about['data']}" if about.get("data") else ""),
        "",
        f"A Vision X-former of the package `vix`: {name}, images of {size}, {net.num_classes} classes, "
        f"{sum(each.numel() for each in net.parameters()):,} parameters.",
        "",
        "```python",
        "from vix.hub import Pretrained",
        "",
        'model = Pretrained.from_pretrained("<this folder or repository>")',
        f"logits = model(images)  # (batch, {size.replace(' x ', ', ')}), normalised",
        "```",
        "",
    ]
    if about.get("mean"):
        mean, std = (", ".join(f"{value:g}" for value in about[each]) for each in ("mean", "std"))
        lines += [f"Images are scaled to 0 to 1, then normalised by mean ({mean}) and standard deviation ({std}).", ""]
    if about.get("class_names"):
        names = [str(each) for each in about["class_names"]]
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more, see {CONFIG}" if len(names) > 20 else "")
        lines += [f"Classes: {shown}.", ""]
    rows = {f"accuracy, {split}": f"{100 * value:.2f} %" for split, value in scores(results).items()}
    for label, key in {"epochs": "epochs", "optimiser steps": "steps", "seed": "seed", "commit": "commit"}.items():
        if results.get(key) is not None:
            rows[label] = str(results[key])
    if results.get("wall_seconds") is not None:
        rows["training time"] = f"{results['wall_seconds']:.0f} s"
    if isinstance(results.get("device"), Mapping):
        rows["device"] = f"{results['device'].get('name')}, {results['device'].get('precision')}"
    if isinstance(results.get("versions"), Mapping):
        rows["torch"] = str(results["versions"].get("torch"))
    if rows:
        lines += ["## The run", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items()), ""]
    if results.get("protocol"):
        lines += [str(results["protocol"]), ""]
    lines += ["## The net", "", "```json", json.dumps(net.spec, indent=2), "```", ""]
    return "\n".join(lines)
