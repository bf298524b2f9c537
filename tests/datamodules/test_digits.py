import torch
from sklearn.datasets import load_digits

from datamodules import Digits


def opened(**arguments: int | float) -> Digits:
    data = Digits(**arguments)
    data.prepare_data()
    data.setup(None)
    return data


def test_the_test_split_is_a_stratified_fifth_that_no_argument_changes() -> None:
    splits = []
    for arguments in ({}, {"seed": 3, "split_seed": 4, "val_fraction": 0.3, "fraction": 0.5, "batch_size": 7}):
        data = opened(**arguments)
        batches = list(data.test_dataloader())
        splits.append(torch.cat([batch.indices for batch in batches]))
        labels = torch.cat([batch.labels for batch in batches])
        assert not set(splits[-1].tolist()) & set(data.train_indices.tolist() + data.val_indices.tolist())
    assert splits[0].equal(splits[1])
    assert len(splits[0]) == 359
    assert (labels.bincount() - 0.2 * torch.from_numpy(load_digits().target).bincount()).abs().max() < 1
    assert splits[0][:8].tolist() == [0, 3, 5, 6, 7, 8, 14, 16]


def test_the_validation_split_stays_what_it_is() -> None:
    assert opened().split()["sha256"] == "ae73472468c9d5e71dcda00c2aca64b330db8c26af23bbe8bdf76702543a8b2b"


def test_mean_and_deviation_are_those_of_what_is_not_test() -> None:
    data = opened(val_fraction=0.0, batch_size=2000)
    (batch,) = data.train_dataloader()
    images = batch.images.double() / 255
    assert len(images) == 1438
    torch.testing.assert_close(images.mean().item(), Digits.mean[0], atol=5e-5, rtol=0)
    torch.testing.assert_close(images.std(correction=0).item(), Digits.std[0], atol=5e-5, rtol=0)


def test_images_are_the_scans_at_their_own_size() -> None:
    data = opened(val_fraction=0.0, batch_size=2000)
    (batch,) = data.train_dataloader()
    scans = torch.from_numpy(load_digits().images)[batch.indices]
    assert batch.images.shape[1:] == (1, 8, 8)
    # from 17 shades of ink to 256 and back
    torch.testing.assert_close((batch.images[:, 0].double() * 16 / 255).round(), scans)


def test_a_mirrored_digit_is_not_offered() -> None:
    assert "flip" not in Digits.valid_augmentations
