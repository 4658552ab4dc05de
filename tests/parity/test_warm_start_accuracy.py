"""What is left of a trained network right after its conversion: Base-Conv's published weights."""

import pytest
import torch

from configs import dataset_config
from data import ResidentBatches
from eval import find_checkpoint, trained_model
from linearconv import convert
from linearconv.engine.step import evaluate
from scripts.evidence.results import RESULTS

RUN = "cifar10-base-Conv-s0-2b22fbec"


@pytest.fixture(scope="module")
def images_and_accuracy(real_dataset):
    """512 training images as the network gets them, and a network's accuracy on the test set."""
    spec, dataset = dataset_config("cifar10"), real_dataset("cifar10")
    batches = ResidentBatches(
        dataset, spec, batch_size=512, eval_batch_size=500, seed=0, device=torch.device("cpu")
    )
    chosen = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(0))[:512]
    pixels = torch.from_numpy(dataset.train.images[chosen.numpy()]).permute(0, 3, 1, 2).float()
    images = torch.stack([spec.normalise(image) for image in pixels])
    return images, lambda network: evaluate(network, batches.test(), "fp32").accuracy


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"alpha": 0.5}, 84.0),
        ({"alpha": 0.75}, 87.0),
        ({"alpha": {"conv4": 0.5}}, 86.0),
        ({"budget": 0.57}, 86.0),
    ],
)
def test_a_warm_start_on_images_keeps_the_accuracy(images_and_accuracy, options, least):
    """Without a step of training; the network itself has 88.13 %."""
    images, accuracy = images_and_accuracy
    _, checkpoint = find_checkpoint(RUN, "best", RESULTS / "none", [RESULTS])
    model = trained_model(checkpoint, dataset_config("cifar10"))
    converted = convert(model, warm_start=images, **options).model
    assert accuracy(converted) >= least
    again = trained_model(checkpoint, dataset_config("cifar10"))
    pair = convert(again, warm_start=images, form="pair", **options).model
    assert accuracy(pair) <= accuracy(converted) + 0.1  # of the same rank, or a lower one
