"""Pretrained weights from files and from the hub's cache; nothing is fetched."""

import pytest
import torch
import torchvision

from splitlearn.errors import UserError
from splitlearn.exchange import network
from splitlearn.tasks import task_from

ABOUT = {"num_classes": 10}
HEAD = {"classifier.1.weight", "classifier.1.bias"}
SQUEEZENET = ["arch=squeezenet1_1", "data.image_size=64"]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """The hub's cache, an empty one, from which nothing is fetched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def fetch(*_, **__):
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    return folder


@pytest.fixture(scope="module")
def theirs():
    """Weights for 1000 classes, as torchvision has them."""
    torch.manual_seed(7)
    return torchvision.models.squeezenet1_1().state_dict()


def loaded(config, *overrides):
    """State and notes of the network with the weights that the configuration names."""
    built = network.build(config(*overrides), ABOUT, pretrained=True)
    return built.client.state_dict() | built.server.state_dict(), built.notes


def assert_theirs_but_for(state, theirs, fresh, config, overrides):
    own = task_from(config()).network(config(*overrides), ABOUT).state_dict()
    assert {name for name in state if not torch.equal(state[name], theirs[name])} == fresh
    assert all(torch.equal(state[name], own[name]) for name in fresh)


def test_a_name_is_looked_up_in_the_hubs_cache(hub, theirs, config):
    torch.save(theirs, hub / "squeezenet1_1-b8a52dc0.pth")
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        state, (note,) = loaded(config, *SQUEEZENET, f"arch.weights={name}")
        assert_theirs_but_for(state, theirs, HEAD, config, SQUEEZENET)
        assert "squeezenet1_1-b8a52dc0.pth" in note and "1000 classes are others: classifier.1.bias" in note


def test_what_is_not_in_the_cache_is_one_sentence_and_not_fetched(hub, config):
    expected = (
        rf"^arch\.weights=DEFAULT: {hub}/squeezenet1_1-b8a52dc0\.pth is not there: .*https://.*arch\.download=true"
    )
    with pytest.raises(UserError, match=expected):
        loaded(config, *SQUEEZENET, "arch.weights=DEFAULT")


def test_it_is_fetched_where_the_user_says_so(hub, theirs, config, monkeypatch):
    def fetch(url, **_):
        torch.save(theirs, hub / url.rpartition("/")[2])

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    state, _ = loaded(config, *SQUEEZENET, "arch.weights=DEFAULT", "arch.download=true")
    assert torch.equal(state["features.0.weight"], theirs["features.0.weight"])
    (hub / "squeezenet1_1-b8a52dc0.pth").unlink()

    def fail(url, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(UserError, match=r"^arch\.weights=DEFAULT: https://.* cannot be fetched \(OSError: no route"):
        loaded(config, *SQUEEZENET, "arch.weights=DEFAULT", "arch.download=true")


@pytest.mark.parametrize("form", ["plain.pt", "checkpoint.pth", "parallel.bin", "weights.safetensors"])
def test_a_file_of_a_state_dict(form, theirs, config, tmp_path):
    path = tmp_path / form
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(theirs, path)
    elif form == "parallel.bin":
        torch.save({"state_dict": {f"module.{name}": value for name, value in theirs.items()}, "epoch": 3}, path)
    else:
        torch.save({"model": theirs} if form == "checkpoint.pth" else theirs, path)
    state, _ = loaded(config, *SQUEEZENET, f"arch.weights={path}")
    assert_theirs_but_for(state, theirs, HEAD, config, SQUEEZENET)


def test_a_file_with_the_same_classes_has_the_head_too(config, tmp_path):
    state = task_from(config()).network(config("seed=5"), ABOUT).state_dict()
    torch.save(state, tmp_path / "model.pt")
    found, notes = loaded(config, f"arch.weights={tmp_path}/model.pt")
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert notes == [f"pretrained weights of {tmp_path}/model.pt"]


@pytest.mark.parametrize(
    "overrides, content, expected",
    [
        (["arch.weights=nowhere/model.pt"], None, r"^arch\.weights=nowhere/model\.pt: there is no such file"),
        (["arch.weights=[a,b]"], None, r"^arch.weights=\['a', 'b'\] must be a file, the name of weights, or null"),
        (["arch.weights=DEFAULT"], None, "^arch.weights=DEFAULT: arch convnet has no weights that are known by name"),
        (
            ["arch=resnet18", "arch.weights=BEST"],
            None,
            "BEST is unknown of resnet18: choose IMAGENET1K_V1, DEFAULT",
        ),
        (["arch.weights={path}"], b"no weights", r"^arch\.weights=.*model\.pt cannot be read as a state dict"),
        (["arch.weights={path}"], {"epoch": 3}, "holds no state dict"),
        (
            ["arch.weights={path}"],
            {"a": torch.zeros(1)},
            r"is not of arch convnet .*lacks block1\.0\.weight, .* a beside",
        ),
        (["arch=resnet18", "arch.weights={path}"], "resnet18", r"conv1\.weight is 64×3×7×7 there and 64×3×3×3 here"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(overrides, content, expected, config, tmp_path):
    path = tmp_path / "model.pt"
    if content == "resnet18":
        content = torchvision.models.resnet18().state_dict()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=expected):
        loaded(config, *(word.format(path=path) for word in overrides))


def test_a_transformers_positions_are_resampled(config, tmp_path):
    with torch.random.fork_rng():
        state = torchvision.models.VisionTransformer(64, 16, 2, 2, 8, 16, num_classes=10).state_dict()
    torch.save(state, tmp_path / "vit.pt")
    sizes = ["+arch.patch_size=16", "+arch.num_layers=2", "+arch.num_heads=2", "+arch.hidden_dim=8", "+arch.mlp_dim=16"]
    own = ["arch._target_=torchvision.models.VisionTransformer", *sizes, "cut=encoder.layers.encoder_layer_0"]
    found, _ = loaded(config, *own, f"arch.weights={tmp_path}/vit.pt")
    assert found["encoder.pos_embedding"].shape == (1, 5, 8)
    assert torch.equal(found["heads.head.weight"], state["heads.head.weight"])


def test_timms_are_looked_up_in_the_cache_of_its_hub(config, tmp_path, monkeypatch):
    timm, constants = pytest.importorskip("timm"), pytest.importorskip("huggingface_hub.constants")
    save_file = pytest.importorskip("safetensors.torch").save_file
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    timms = ["arch=timm", "arch.model=resnet10t", "cut=layer2"]
    with pytest.raises(
        UserError, match=r"^arch\.weights=DEFAULT: the hub's cache does not .*co/timm/resnet10t\.c3_in1k"
    ):
        loaded(config, *timms, "arch.weights=DEFAULT")
    with pytest.raises(UserError, match=r"^arch\.weights=other is unknown of resnet10t: choose DEFAULT, c3_in1k$"):
        loaded(config, *timms, "arch.weights=other")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = timm.create_model("resnet10t").state_dict()
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    save_file(theirs, folder / "snapshots" / "1" / "model.safetensors")
    for name in ("DEFAULT", "c3_in1k"):
        state, (note,) = loaded(config, *timms, f"arch.weights={name}")
        assert_theirs_but_for(state, theirs, {"fc.weight", "fc.bias"}, config, timms)
        assert str(folder) in note and "1000 classes are others" in note
