"""What is optimised how: parameter groups, and the course of the learning rate by step."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Set
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]


def import_path(kind: type) -> str:
    """The shortest dotted path under which a class is found: `torch.optim.AdamW`, not `torch.optim.adamw.AdamW`."""
    parts = kind.__module__.split(".")
    modules = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    found = (name for name in modules if getattr(sys.modules.get(name), kind.__qualname__, None) is kind)
    return f"{next(found, kind.__module__)}.{kind.__qualname__}"


def parameter_groups(net: nn.Module, *, decay_all: bool = False) -> list[dict[str, Any]]:
    """Splits a net's trainable parameters into those that decay and those that must not.

    Vectors and scalars (norms, biases) never decay, nor does what the net names in `no_weight_decay()`: position
    tables and class tokens are values in their own right, which decay would pull to zero.

    Args:
        net: Any module; `no_weight_decay()`, names of parameters, is asked for where it exists.
        decay_all: Whether all parameters are one group that decays.

    Returns:
        One or two groups for a `torch.optim` optimiser, with names; the second overrides `weight_decay` by 0.

    Raises:
        ValueError: If the net has nothing to train, or names a parameter that it does not have.
    """
    named = dict(net.named_parameters())
    say: Any = getattr(net, "no_weight_decay", set)
    spared: set[str] = set(say())
    if unknown := spared - named.keys():
        raise ValueError(f"no_weight_decay() of {type(net).__name__} names what is no parameter: {sorted(unknown)}")
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    if not trained:
        raise ValueError(f"{type(net).__name__} has no parameter to train")
    kept = {name for name, parameter in trained.items() if not decay_all and (parameter.ndim <= 1 or name in spared)}
    groups = [_group(trained, trained.keys() - kept), {**_group(trained, kept), "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _group(parameters: dict[str, nn.Parameter], chosen: Set[str]) -> dict[str, Any]:
    """A group of some parameters, in the net's order."""
    names = [name for name in parameters if name in chosen]
    return {"params": [parameters[name] for name in names], "param_names": names}


class Schedule(ABC):
    """A course of the learning rate: the factor on each group's rate, by optimiser step.

    A subclass keeps its constructor's arguments as attributes of the same names; they are its `spec`.
    """

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """The factor for optimiser step `step` (from 0) of `steps` in all; called beyond the end as well."""

    @property
    def spec(self) -> dict[str, Any]:
        """Class path and arguments, plain types: enough to build it again."""
        return {"class_path": import_path(type(self)), "init_args": dict(vars(self))}


class WarmupCosine(Schedule):
    """Rises linearly to the full rate, then falls along half a cosine.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv:1608.03983 (one period), after the linear warm-up of Goyal
    et al., arXiv:1706.02677.

    Args:
        warmup: Share of all optimiser steps that warm up, 0 to 1.
        final: Where the cosine ends, as share of the full rate, 0 to 1.

    Raises:
        ValueError: If one of them is outside 0 to 1.
    """

    def __init__(self, *, warmup: float = 0.05, final: float = 0.0) -> None:
        for name, value in {"warmup": warmup, "final": final}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a share from 0 to 1, got {value}")
        self.warmup = warmup
        self.final = final

    def factor(self, step: int, steps: int) -> float:
        """Never zero at the first step, so that no step is wasted; `final` from the end on."""
        rising = math.ceil(self.warmup * steps)
        if step < rising:
            return (step + 1) / rising
        done = min(1.0, (step - rising) / max(1, steps - rising))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class ScheduledRate(LambdaLR):
    """Applies a `Schedule` to an optimiser; its state is the step alone.

    torch's schedulers save their base rates too, so that a resumed run would go on with the checkpoint's rate whatever
    the user asks for. Here the rate is always the optimiser's own, and only the place on the curve is restored.

    Args:
        optimizer: The optimiser, fresh: its groups' rates are the full rates.
        schedule: The curve.
        steps: Optimiser steps of the whole training.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule, steps: int) -> None:
        super().__init__(optimizer, lambda step: schedule.factor(step, steps))

    def state_dict(self) -> dict[str, Any]:
        """The place on the curve."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a saved place and sets the rates that hold there."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        rates = [full * factor(self.last_epoch) for full, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def keep_settings(optimizer: Optimizer) -> None:
    """Makes an optimiser keep its own settings when a state is loaded into it.

    torch takes rate, decay and betas from the loaded state, so that a resumed run would silently ignore what the user
    now asks for. State (moments, step counts) is loaded as ever.
    """

    def own_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [
            {**own, "params": saved["params"]}
            for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False)
        ]
        # A state with another number of groups is left as it is: torch then refuses it with a clear message.
        return {**state, "param_groups": groups} if len(groups) == len(state["param_groups"]) else state

    optimizer.register_load_state_dict_pre_hook(own_settings)
