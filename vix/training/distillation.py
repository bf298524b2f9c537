"""Fine-tuning a net whose attention was swapped, with the net that it was before as teacher.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, for the logits; Zhang et
al., "The Hedgehog & the Porcupine", ICLR 2024, arXiv:2402.04347, and "LoLCATs", 2024, arXiv:2410.10254, for attention
learned layer by layer. Differences: all is learned at once, and the layers' loss is that of their outputs, in parts of
the teacher's variance.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vix.training.classifier import ImageBatch, ImageClassifier


class DistilledClassifier(ImageClassifier):
    """Adds to the cross-entropy what makes layers and logits those of a teacher with the same weights' names.

    Each attention that differs is given what the teacher's has got, so that errors of the layers before do not add up.

    Args:
        net: Learns.
        teacher: The net before the swap; it is not trained and not part of the state.
        attention: Weight of the mean squared error of the attentions' outputs, in parts of the teacher's variance.
        logits: Weight of the divergence of the logits' distributions.
        temperature: Divides the logits for that; its square multiplies the divergence.
        classifier: Arguments of `ImageClassifier`.

    Raises:
        ValueError: If a weight is negative or the temperature is not positive.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        teacher: nn.Module,
        attention: float = 1.0,
        logits: float = 1.0,
        temperature: float = 2.0,
        **classifier: Any,
    ) -> None:
        super().__init__(net, **classifier)
        if attention < 0 or logits < 0 or temperature <= 0:
            raise ValueError(
                "distillation needs attention and logits of at least 0 and a positive temperature, "
                f"got {attention}, {logits} and {temperature}"
            )
        self.attention, self.logits, self.temperature = attention, logits, temperature
        # In a list, so that it is no part of the module: neither saved nor trained nor averaged.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self._heard: dict[str, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = {}
        self.pairs = different_attentions(net, teacher)
        for name in self.pairs:
            teacher.get_submodule(name).register_forward_hook(self._listen(name), with_kwargs=True)

    def on_fit_start(self) -> None:
        """Brings the teacher to the device."""
        self._teacher[0].to(self.device)

    def training_loss(self, batch: ImageBatch, logits: Tensor) -> Tensor:
        """Cross-entropy, and the distances to the teacher."""
        loss = super().training_loss(batch, logits)
        with torch.no_grad():
            taught = self._teacher[0](batch.images)
        if self.logits:
            loss = loss + self.logits * divergence(logits, taught, self.temperature)
        if self.attention and self.pairs:
            distances = [relative_error(first(part(*heard[0], **heard[1])), heard[2]) for part, heard in self._pairs()]
            loss = loss + self.attention * torch.stack(distances).mean()
        self._heard.clear()
        return loss

    def _pairs(self) -> list[tuple[nn.Module, tuple[tuple[Any, ...], dict[str, Any], Tensor]]]:
        return [(part, self._heard[name]) for name, part in self.pairs.items()]

    def _listen(self, name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            self._heard[name] = inputs, options, first(output)

        return hook


def different_attentions(net: nn.Module, teacher: nn.Module) -> dict[str, nn.Module]:
    """The net's parts around a kernel that the teacher has not, by the teacher's names."""
    inner = getattr(net, "net", net)
    found = {}
    for name, part in inner.named_modules():
        kernel = part._modules.get("attention")
        if kernel is None or not hasattr(kernel, "approach_softmax"):
            continue
        theirs = teacher.get_submodule(name)
        if type(theirs._modules.get("attention")) is not type(kernel):
            found[name] = part
    return found


def divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Mean over images of KL(teacher, net), softened, in at least fp32."""
    precise = torch.promote_types(logits.dtype, torch.float32)
    ours, theirs = (F.log_softmax(each.to(precise) / temperature, dim=-1) for each in (logits, taught))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def relative_error(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error in parts of the variance of what is wanted."""
    precise = torch.promote_types(output.dtype, torch.float32)
    return F.mse_loss(output.to(precise), wanted.to(precise)) / wanted.to(precise).var().clamp(min=1e-12)


def first(output: Any) -> Tensor:
    """An attention's output: torch's own gives a pair."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor
