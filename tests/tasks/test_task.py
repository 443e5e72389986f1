import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import nn

from splitlearn import config as configuration
from splitlearn.errors import UserError
from splitlearn.tasks import Metric, task_from
from splitlearn.tasks.image_classification import ImageClassification
from splitlearn.tasks.image_classification.task import about_of

CPU = torch.device("cpu")
TASK = ImageClassification()
TEN = about_of(range(10))


def test_configuration_names_the_task(config):
    assert isinstance(task_from(config()), ImageClassification)
    assert configuration.shared(config())["task._target_"].endswith(".ImageClassification")


def test_a_run_that_names_no_task_classifies_images(config):
    older = OmegaConf.masked_copy(config(), [key for key in config() if key != "task"])
    assert isinstance(task_from(older), ImageClassification)


def test_metrics_have_their_names_and_the_first_is_the_best_known():
    assert TASK.metrics == (Metric("top1", "accuracy"), Metric("top5", "top-5"))
    assert set(TASK.train_metrics) <= {metric.name for metric in TASK.metrics}
    assert all(metric.higher_is_better and metric.is_share for metric in TASK.metrics)


def test_clients_share_the_data(config):
    cfg = config("data.max_train_samples=101", "data.max_test_samples=34", "batch_size=8")
    clients = [TASK.load(cfg, client, 3) for client in range(3)]
    assert [data.num_train for data in clients] == [34, 34, 33]
    assert [data.num_test for data in clients] == [12, 11, 11]
    assert all(data.about == TEN for data in clients)
    data = clients[2]
    assert sum(len(labels) for _, labels in data.train) == 33 and sum(len(labels) for _, labels in data.test) == 11
    data.train.batch_sampler.start_at(1, 4)
    assert [len(labels) for _, labels in data.train] == [1]


@pytest.mark.parametrize("number", [1, 10, 1 << 20])
def test_number_of_classes_is_what_is_said_of_data(number):
    TASK.check_about(about_of(range(number)))


@pytest.mark.parametrize("about", [None, [], 10, {}, {"num_classes": 10}, {**TEN, "size": 3}])
def test_what_says_something_else_of_data_is_refused(about):
    with pytest.raises(ValueError, match="it does not say how many classes there are"):
        TASK.check_about(about)


@pytest.mark.parametrize("number", [0, -1, (1 << 20) + 1, 10.0, True, "10", None, torch.tensor(10)])
def test_a_number_of_classes_that_cannot_be_is_refused(number):
    with pytest.raises(ValueError, match="num_classes is not a number from 1 to 1048576"):
        TASK.check_about({**TEN, "num_classes": number})


@pytest.mark.parametrize(
    "classes, match",
    [
        (["a"] * 9, "no list of 10 names"),
        (tuple("0123456789"), "no list of 10 names"),
        (None, "no list of 10 names"),
        ([*"012345678", 9], "no names of up to 255 letters"),
        ([*"012345678", "9" * 256], "no names of up to 255 letters"),
    ],
)
def test_names_that_cannot_be_are_refused(classes, match):
    with pytest.raises(ValueError, match=match):
        TASK.check_about({"num_classes": 10, "classes": classes})


@pytest.mark.parametrize(
    "one, other, words",
    [
        (["ant", "bee"], ["bee", "cat"], "2 classes instead of 2: it lacks ant and has cat"),
        (["ant", "bee"], ["ant"], "1 classes instead of 2: it lacks bee"),
        (["ant"], ["ant", *"abcdefg"], "8 classes instead of 1: it has a, b, c, d, e, …"),
        (["ant", "bee"], ["bee", "ant"], "the same classes in another order"),
    ],
)
def test_data_fit_together_with_the_same_classes(one, other, words):
    assert TASK.disagreement(about_of(one), about_of(list(one))) is None
    found = TASK.disagreement(about_of(one), about_of(other))
    assert found.startswith(f"it has {words};") and "data.classes=[…] gives one list for all" in found


def test_network_takes_the_example_and_is_the_seeds(config):
    cfg = config("seed=3", "data.image_size=16")
    before = torch.get_rng_state()
    model, again = (TASK.network(cfg, about_of("abcdefg")) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert TASK.example(cfg).shape == (2, 3, 16, 16)
    assert model(TASK.example(cfg)).shape == (2, 7)
    assert TASK.cut_path(cfg, "medium", model) == "block2" and TASK.cut_path(cfg, "block2.1", model) == "block2.1"


def test_what_is_known_without_data(config):
    cfg = config("data=image_folder", "arch=resnet18")
    assert TASK.headline(cfg) == ("resnet18", "image_folder")
    assert TASK.default_about(cfg) == TEN
    assert TASK.default_about(config("data=cifar100"))["num_classes"] == 100
    assert TASK.default_about(config("data.classes=[ant,bee]")) == about_of(["ant", "bee"])


def test_batch_goes_to_the_device():
    images, targets = TASK.to_device([torch.zeros(2, 3), torch.ones(2)], torch.device("meta"))
    assert images.device.type == targets.device.type == "meta"


@pytest.mark.parametrize(
    "largest, dtype",
    [
        (0, torch.uint8),
        (255, torch.uint8),
        (256, torch.int16),
        (32767, torch.int16),
        (32768, torch.int32),
        ((1 << 20) - 1, torch.int32),
    ],
)
def test_targets_are_sent_in_the_smallest_dtype(largest, dtype):
    targets = torch.tensor([0, largest, largest // 2])
    packed = TASK.pack(targets)
    assert packed.dtype == dtype
    TASK.check_targets(packed, {"num_classes": largest + 1}, 3)
    unpacked = TASK.unpack(packed, CPU)
    assert unpacked.dtype == torch.int64 and torch.equal(unpacked, targets)
    assert TASK.num_samples(packed) == TASK.num_samples(unpacked) == 3


@pytest.mark.parametrize(
    "packed, match",
    [
        (None, "no 1-D integer tensor"),
        ([1, 2], "no 1-D integer tensor"),
        (torch.zeros(2, 2, dtype=torch.uint8), "no 1-D integer tensor"),
        (torch.tensor(1), "no 1-D integer tensor"),
        (torch.zeros(2), "no 1-D integer tensor"),
        (torch.zeros(2, dtype=torch.bool), "no 1-D integer tensor"),
        (torch.zeros(0, dtype=torch.uint8), "there are 0 labels, where a batch has 1 to 4"),
        (torch.zeros(5, dtype=torch.uint8), "there are 5 labels, where a batch has 1 to 4"),
        (torch.zeros(2, dtype=torch.uint8, device="meta"), "there are 2 labels, where a batch has 1 to 4"),
        (torch.zeros(2, dtype=torch.uint8).to_sparse(), "there are 2 labels, where a batch has 1 to 4"),
        (torch.tensor([0, 10]), "the labels are from 0 to 10; there are 10 classes"),
        (torch.tensor([-1, 3], dtype=torch.int8), "the labels are from -1 to 3; there are 10 classes"),
    ],
)
def test_targets_that_nobody_packs_are_refused(packed, match):
    with pytest.raises(ValueError, match=match):
        TASK.check_targets(packed, TEN, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_is_the_mean_cross_entropy(dtype, noise):
    outputs, targets = noise(6, 4, dtype=dtype).requires_grad_(), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = TASK.loss(outputs, targets)
    assert loss.shape == () and loss.dtype == torch.float32 and loss.requires_grad
    assert torch.equal(loss, nn.CrossEntropyLoss()(outputs.float(), targets))


def test_score_is_a_sum_over_the_samples(noise):
    outputs = noise(50, 10).requires_grad_()
    targets = torch.arange(50) % 10
    ranks = (outputs > outputs.gather(1, targets[:, None])).sum(1)
    score = TASK.score(outputs, targets, TASK.evaluated)
    assert score == {
        "loss": F.cross_entropy(outputs, targets, reduction="sum").item(),
        "top1": int((ranks < 1).sum()),
        "top5": int((ranks < 5).sum()),
    }
    assert 0 < score["top1"] < score["top5"] < 50
    assert TASK.score(outputs, targets, TASK.train_metrics).keys() == {"top1"}


def test_all_are_among_the_five_best_of_fewer_classes():
    assert TASK.score(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), ["top5"])["top5"] == 4


# Options of the loss


def know(counts=(8, 1, 1, 0), **options):
    task = ImageClassification(**options)
    about = {"num_classes": len(counts)}
    task.know(about | {"num_train_of_class": list(counts)} if task.counts else about)
    return task


@pytest.mark.parametrize("weights", [None, [1, 2, 0.5, 1]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_training_has_smoothed_labels_and_weighted_classes_and_the_test_loss_has_not(weights, smoothing, noise):
    task, outputs, targets = know(label_smoothing=smoothing, class_weights=weights), noise(6, 4), torch.arange(6) % 4
    expected = nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights), label_smoothing=smoothing)
    assert torch.equal(task.loss(outputs, targets), expected(outputs, targets))
    assert task.score(outputs, targets, ["loss"])["loss"] == F.cross_entropy(outputs, targets, reduction="sum").item()


def test_balanced_classes_weigh_the_same_over_the_samples_of_all_clients():
    task = know(class_weights="balanced")
    about = {"num_classes": 4, "classes": ["a", "b", "c", "d"]}
    one, other = ({**about, "num_train_of_class": counts} for counts in ([3, 0, 1, 0], [5, 1, 0, 0]))
    task.check_about(one)
    together = task.together([one, other])
    assert together == {**about, "num_train_of_class": [8, 1, 1, 0]}
    task.know(together)
    assert task.class_weights.tolist() == pytest.approx([10 / 4 / 8, 10 / 4, 10 / 4, 0])


@pytest.mark.parametrize(
    "counts", [None, "many", [1, 2], [1, 2, 3, -1], [1, 2, 3, True], [1, 2, 3, 1 << 60], [1, 2, 3, 0.5]], ids=str
)
def test_what_is_no_number_of_samples_for_each_class_is_refused(counts):
    about = {"num_classes": 4, "classes": ["a", "b", "c", "d"]}
    with pytest.raises(ValueError, match="num_train_of_class"):
        know(class_weights="balanced").check_about({**about, "num_train_of_class": counts})
    with pytest.raises(ValueError, match="how many training samples of each"):
        know(class_weights="balanced").check_about(about)


def test_counts_that_nobody_asked_for_are_refused():
    with pytest.raises(ValueError, match="nothing else"):
        know().check_about({"num_classes": 2, "classes": ["a", "b"], "num_train_of_class": [1, 2]})


def test_weights_of_another_number_of_classes_are_one_sentence():
    with pytest.raises(UserError, match=r"task.class_weights has 3 numbers, but the data 4 classes"):
        know(class_weights=[1, 2, 3])


def test_a_sample_is_taken_for_the_class_of_its_highest_score():
    outputs = torch.tensor([[0.1, 0.9, 0.0], [2.0, -1.0, 0.0]])
    assert TASK.told_apart(outputs, torch.tensor([1, 2])).tolist() == [[1, 1], [2, 0]]
    assert TASK.class_names({"num_classes": 3}) == ["0", "1", "2"]
    assert TASK.class_names({"num_classes": 2, "classes": ["cat", "dog"]}) == ["cat", "dog"]
