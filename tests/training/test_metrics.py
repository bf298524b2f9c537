"""Scores are true means over images."""

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from vix.training.metrics import Scores, evaluation


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_uneven_batches_give_what_torchmetrics_gives_on_all_images_at_once(classes: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(101, classes), torch.randint(classes, (101,))
    scores, k = Scores(), min(5, classes)
    for part, truth in zip(logits.split([64, 30, 7]), labels.split([64, 30, 7]), strict=True):
        scores.update(F.cross_entropy(part, truth), part, truth)
    means = scores.compute()
    assert means.keys() == {"loss", "top1", f"top{k}"}
    torch.testing.assert_close(means["loss"], F.cross_entropy(logits, labels))
    for name, top in {"top1": 1, f"top{k}": k}.items():
        whole = MulticlassAccuracy(classes, average="micro", top_k=top)(logits, labels)
        torch.testing.assert_close(means[name], whole)


def test_one_class_has_no_second_accuracy() -> None:
    scores = Scores()
    scores.update(torch.tensor(0.0), torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    assert scores.compute().keys() == {"loss", "top1"}


def test_shared_labels_count_as_the_larger_one_and_the_scores_are_named_so() -> None:
    scores = Scores()
    scores.update(torch.tensor(1.0), torch.eye(3), torch.tensor([[0.6, 0.4, 0], [0.3, 0.7, 0], [0.9, 0, 0.1]]))
    means = scores.compute()
    assert means.keys() == {"loss", "top1_mixed", "top3_mixed"}
    torch.testing.assert_close(means["top1_mixed"], torch.tensor(2 / 3))


def test_a_reset_forgets() -> None:
    scores = Scores()
    scores.update(torch.tensor(9.0), torch.eye(3), torch.tensor([1, 2, 0]))
    scores.reset()
    scores.update(torch.tensor(1.0), torch.eye(3), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(scores.compute()["loss"], torch.tensor(1.0))


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_an_evaluation_is_what_torchmetrics_says_of_all_images(sharpness: float) -> None:
    torch.manual_seed(1)
    logits, labels = sharpness * torch.randn(500, 7), torch.randint(7, (500,))
    probabilities = logits.softmax(-1)
    found = evaluation(labels, logits.argmax(-1), probabilities.amax(-1), 7)
    assert found["confusion"] == multiclass_confusion_matrix(logits, labels, 7).tolist()
    torch.testing.assert_close(torch.tensor(found["class_top1"]), multiclass_accuracy(logits, labels, 7, average=None))
    theirs = multiclass_calibration_error(probabilities, labels, 7, n_bins=15, norm="l1").item()
    assert found["calibration_error"] == pytest.approx(theirs, abs=1e-6)


def test_a_class_without_images_has_no_accuracy_and_certainty_falls_into_the_last_bin() -> None:
    found = evaluation(torch.tensor([0, 0]), torch.tensor([0, 2]), torch.tensor([1.0, 1.0]), 3)
    assert found["class_top1"] == [0.5, None, None]
    assert found["confusion"] == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert found["calibration_error"] == 0.5
