"""Muon for the matrices inside a net, AdamW for everything else, as one optimiser."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# Jordan et al. (2024): five steps bring singular values from about 0.002 to 1 between 0.7 and 1.2.
QUINTIC = (3.4445, -4.775, 2.0315)
STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Brings the singular values of matrices (..., rows, columns) near one, 0.7 to 1.2, and keeps their directions.

    Source: the quintic Newton-Schulz iteration of Jordan et al., "Muon: An optimizer for hidden layers in neural
    networks", 2024, https://kellerjordan.github.io/posts/muon; in at least float32 instead of bfloat16. Where a side is
    twice the other or more, the polynomials of the small X X^T are multiplied, and X with all of them at the end.
    """
    a, b, c = QUINTIC
    wide = matrices.size(-2) <= matrices.size(-1)
    x = (matrices if wide else matrices.mT).to(torch.promote_types(matrices.dtype, torch.float32))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    if 2 * x.size(-2) <= x.size(-1):
        x = _polynomials(x @ x.mT) @ x
    else:
        for _ in range(STEPS):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def _polynomials(gram: Tensor) -> Tensor:
    """Multiplies the polynomials of all steps, given the first X X^T: that of the next is P X X^T P."""
    a, b, c = QUINTIC
    unit = a * torch.eye(gram.size(-1), dtype=gram.dtype, device=gram.device)
    total = unit + b * gram + c * gram @ gram
    polynomial = total
    for _ in range(STEPS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = unit + b * gram + c * gram @ gram
        total = polynomial @ total
    return total


class MuonAdamW(Optimizer):
    """Moves the matrices inside a net by Muon and all other parameters by AdamW, with one rate and one decay.

    Muon makes the momentum of a matrix orthogonal, so that directions with small gradients are learned as fast as those
    with large ones. Parameters of two dimensions take part, but not the embedding and the head, nor what a group spares
    decay by a `weight_decay` of its own of 0, such as position tables, nor a single row or column. Matrices of the same
    shape are made orthogonal together.

    Sources: Jordan et al. (2024), see `orthogonalize`; the step's length, `rms` sqrt(max(rows, columns)) rates, after
    Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv:2502.16982, equation 4, where `rms` is 0.2; AdamW of
    Loshchilov and Hutter, arXiv:1711.05101.

    Args:
        params: Parameters with names: `net.named_parameters()`, groups of such pairs, or `parameter_groups(net)`.
        lr: Rate of both.
        weight_decay: Decay of both, in rates.
        rms: Root mean square of a matrix's step, in rates; AdamW's is about 0.2 to 0.4.
        momentum: Of Muon, with Nesterov's look ahead.
        betas: Of AdamW.
        eps: Of AdamW.
        elementwise: What AdamW moves: parameters of whose dotted names a part begins with one of these words.

    Raises:
        ValueError: If a number is out of its range, or a parameter has no name.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        rms: float = 0.2,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        elementwise: Sequence[str] = ("embed", "patch_embed", "head", "classifier"),
    ) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay, "rms": rms, "eps": eps}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        for name, value in {"momentum": momentum, "betas[0]": betas[0], "betas[1]": betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        numbers = {"lr": lr, "weight_decay": weight_decay, "rms": rms, "momentum": momentum, "eps": eps}
        super().__init__(params, {**numbers, "betas": tuple(betas), "elementwise": tuple(elementwise), "muon": False})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, split in two where it has matrices for Muon beside others; those of AdamW come first."""
        pairs = _named(param_group)
        words = param_group.get("elementwise", self.defaults["elementwise"])
        spared = param_group.get("weight_decay") == 0
        chosen = {name for name, parameter in pairs if not spared and _is_hidden_matrix(name, parameter, words)}
        for muon in (False, True):
            if part := [pair for pair in pairs if (pair[0] in chosen) == muon]:
                super().add_param_group({**param_group, "params": part, "muon": muon})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step; parameters without a gradient stay as they are.

        Args:
            closure: Computes loss and gradients anew and gives the loss.

        Returns:
            What the closure gave, nothing without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._step_matrices if group["muon"] else self._step_elements)(trained, group)
        return loss

    def _step_matrices(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        rate, momentum = group["lr"], group["momentum"]
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            alike[matrix.shape, matrix.dtype, matrix.device].append(matrix)
        for (shape, *_), same in alike.items():
            ahead = []
            for matrix in same:
                gradient, state = matrix.grad, self.state[matrix]
                assert gradient is not None
                if not state:
                    state["momentum"] = torch.zeros_like(gradient)
                mean = state["momentum"].lerp_(gradient, 1 - momentum)
                ahead.append(gradient.lerp(mean, momentum))
            moves = orthogonalize(torch.stack(ahead))
            for matrix, move in zip(same, moves, strict=True):
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.sub_(move, alpha=rate * group["rms"] * max(shape) ** 0.5)

    def _step_elements(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["square"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]  # those without one were left out
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _is_hidden_matrix(name: str, parameter: Tensor, elementwise: Sequence[str]) -> bool:
    named = any(part.startswith(tuple(elementwise)) for part in name.split("."))
    return parameter.ndim == 2 and min(parameter.shape) > 1 and not named


def _named(group: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """A group's names and parameters, however torch lets them be given."""
    params = group["params"]
    params = [params] if isinstance(params, Tensor) else list(params)
    if names := group.get("param_names"):
        return list(zip(names, params, strict=True))
    if not all(isinstance(pair, tuple) for pair in params):
        raise ValueError(
            "MuonAdamW chooses by names: give it net.named_parameters() or vix.training.parameter_groups(net)"
        )
    return params
