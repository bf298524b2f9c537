"""A look inside: the attention that any mechanism implies, its numbers, and what reached the classifier."""

from vix.explain.capture import capture
from vix.explain.explanation import Explanation, Layer, explain
from vix.explain.mixing import Mixing, Window
from vix.explain.statistics import effective_rank

__all__ = ["Explanation", "Layer", "Mixing", "Window", "capture", "effective_rank", "explain"]
