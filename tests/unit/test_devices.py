"""What a CUDA device would refuse, found without one; resuming on every device at hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from configs import dataset_config
from data import DATA, ResidentBatches, load_dataset
from linearconv import model_correlation_loss, set_execution
from linearconv.engine.checkpoint import Checkpoints
from linearconv.engine.fast.capture import CapturedSteps
from linearconv.engine.fast.runtime import Runtime
from linearconv.engine.loop import Training, TrainSettings, fit, train_epoch
from linearconv.engine.optimizer import ADAM, OptimizerSettings
from linearconv.engine.precision import precision_flags
from linearconv.engine.record import weights_sha256
from linearconv.engine.seeding import seeded
from linearconv.engine.step import EagerSteps, Regularizer
from models import Variant, build_model

LRR = Variant(linear=True, regularized=True, rank=10)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 asks the driver for fake CUDA tensors"
)
@pytest.mark.parametrize("execution", ["generate", "factored"])
@pytest.mark.parametrize("name", ["base", "allconv", "resnext29"])
def test_forward_and_loss_stay_on_the_device_and_read_nothing_back(name, execution):
    """A fake CUDA tensor raises on a mix of devices and on `.item()`."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        model = build_model(name, LRR, in_channels=3, classes=10)
        set_execution(model, execution)
        logits = model(torch.empty(4, 3, 32, 32))
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
        total = loss + 0.01 * model_correlation_loss(model)
    assert total.device.type == "cuda"


FAST = Runtime(
    channels_last=True,
    fused_optimizer=True,
    cuda_graphs=True,  # on CUDA
    fold_batch_norms=True,
    count_per_epoch=True,
    pool_before_relu=True,
    small_image_products=True,
)
MOMENTUM = OptimizerSettings("sgd", momentum=0.9, nesterov=True, weight_decay=5e-4)
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS_CUDA])]
)
@pytest.mark.parametrize(
    ("speed", "optimizer", "execution"),
    [(Runtime(), ADAM, "generate"), (FAST, ADAM, "factored"), (FAST, MOMENTUM, "generate")],
    ids=["reference", "fast", "fast-momentum"],
)
def test_a_resumed_run_is_bit_identical(tmp_path, device, execution, speed, optimizer, digits_root):
    regularizer = Regularizer(0.01, 10, False)
    settings = TrainSettings(4, 1e-3, 2, 0.1, regularizer, optimizer=optimizer)
    spec = dataset_config("digits")
    batches = DATA["resident" if speed is FAST else "per_sample"](
        load_dataset(spec, digits_root, limit_train=100, limit_test=10),
        spec,
        batch_size=8,
        eval_batch_size=10,
        seed=0,
        device=torch.device(device),
    )
    hashes = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        for stop in stops:
            with seeded("init", 0):
                model = build_model("base", LRR, in_channels=1, classes=10)
            set_execution(model, execution)
            training, checkpoints = (
                Training(model.to(device), settings, speed),
                Checkpoints(tmp_path / name),
            )
            state = checkpoints.load_last()
            if state is not None:
                training.load_state_dict(state)
            ticks = iter(range(100))
            fit(
                training,
                batches,
                checkpoints,
                header={"run_id": name, "science": {}},
                start={},
                deadline=2 * (stop - training.epoch),
                clock=lambda ticks=ticks: next(ticks),
            )
            assert training.epoch == stop
        hashes.append(weights_sha256(training.model))
    assert hashes[0] == hashes[1]


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.parametrize("name", ["base", "allconv", "resnext29"])
@pytest.mark.parametrize("precision", ["tf32", "fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [ADAM, MOMENTUM], ids=["adam", "momentum"])
def test_cuda_graphs_compute_what_eager_steps_do(name, precision, optimizer, digits_root):
    spec = dataset_config("digits")
    dataset = load_dataset(spec, digits_root, limit_train=1000, limit_test=10)
    device = torch.device("cuda")
    batches = ResidentBatches(
        dataset, spec, batch_size=64, eval_batch_size=10, seed=0, device=device
    )
    regularizer = Regularizer(0.01, 10, False)
    settings = TrainSettings(2, 1e-3, 1, 0.1, regularizer, precision, optimizer)

    def losses(captured: bool) -> list[float]:
        with seeded("init", 0):
            model = build_model(name, LRR, in_channels=1, classes=10)
        set_execution(model, "factored")
        training = Training(model.to(device), settings, FAST)
        with precision_flags(precision), training.accelerated.rewritten():
            if captured:
                steps, notes = training.accelerated.steps(training.step, batches)
                assert isinstance(steps, CapturedSteps), notes
            else:
                training.model.train()
                steps = EagerSteps(training.step, batches)
            found = []
            for _ in range(settings.epochs):
                found.append(train_epoch(training, steps, batches, ())["train_loss"])
                training.curve.append({})
        return found

    assert losses(captured=True) == pytest.approx(losses(captured=False), rel=1e-3)


@pytest.mark.cuda
@NEEDS_CUDA
def test_cuda_cuts_the_same_bits(digits_root):
    spec = dataset_config("digits")
    dataset = load_dataset(spec, digits_root, limit_train=200, limit_test=50)
    settings = {"batch_size": 64, "eval_batch_size": 50, "seed": 0}
    here, there = (
        ResidentBatches(dataset, spec, device=torch.device(device), **settings)
        for device in ("cpu", "cuda")
    )
    for one_pass in (lambda b: b.train(3), lambda b: b.test()):
        for (a, x), (b, y) in zip(one_pass(here), one_pass(there), strict=True):
            assert torch.equal(a, b.cpu()) and torch.equal(x, y.cpu())
