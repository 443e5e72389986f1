"""Pretrained weights into a fresh network: from a state dict's file, or from the hub's cache by a name.

Nothing is fetched unless arch.download says so. A head of another number of classes stays fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from splitlearn.errors import UserError
from splitlearn.segments.tracing import in_short
from splitlearn.tasks.image_classification.networks import OURS, TORCHVISION, timm_network, title

FILES = (".pt", ".pth", ".bin", ".safetensors")
INSIDE = ("state_dict", "model", "model_state_dict")  # where training programs put it in a file of theirs


def load(arch: DictConfig, model: nn.Module, num_classes: int, image_size: int) -> list[str]:
    """Loads the weights that arch.weights names into `model`; returns what the user should know of it.

    Raises:
        UserError: they are not there, or of another network; says where they were looked for.
    """
    if not isinstance(arch.weights, str):
        raise UserError(f"arch.weights={arch.weights} must be a file, the name of weights, or null")
    path = Path(arch.weights).expanduser()
    if path.suffix in FILES or path.is_file():
        if not path.is_file():
            raise UserError(f"arch.weights={arch.weights}: there is no such file (the server looks for it)")
        return _fit(arch, model, _read(path), num_classes, image_size, str(path))
    if arch.name == "timm" and not arch.get("_target_"):
        return _timm(arch, model, num_classes, image_size)
    name = f"{arch.name}_bn" if arch.name in ("vgg16", "vgg19") else arch.name
    if arch.get("_target_") or name not in TORCHVISION:
        raise UserError(
            f"arch.weights={arch.weights}: arch {title(arch)} has no weights that are known by name; give the path of"
            f" a file that ends in {', '.join(FILES)}"
        )
    known = torchvision.models.get_model_weights(name).__members__
    if arch.weights not in known:
        raise UserError(f"arch.weights={arch.weights} is unknown of {name}: choose {', '.join(known)}, or a file")
    url = known[arch.weights].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    path = _cached(arch, path, url, lambda: torch.hub.load_state_dict_from_url(url, check_hash=True, progress=False))
    return _fit(arch, model, _read(path), num_classes, image_size, str(path))


def _cached(arch: DictConfig, path: Path | None, source: str, fetch: Callable[[], Any]) -> Path | None:
    """The file, which is fetched if it is not there and may be; None stays None once it was fetched."""
    if path is not None and path.is_file():
        return path
    if not arch.download:
        where = f"{path} is not there" if path else "the hub's cache does not have it"
        raise UserError(
            f"arch.weights={arch.weights}: {where}: put the file of {source} there, or set arch.download=true (the"
            " server looks for it)"
        )
    try:
        fetch()
    except Exception as error:
        raise UserError(f"arch.weights={arch.weights}: {source} cannot be fetched ({in_short(error)})") from None
    return path


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise UserError("a .safetensors file needs the package safetensors: pip install safetensors") from None
    except Exception as error:
        raise UserError(f"arch.weights={path} cannot be read as a state dict ({in_short(error)})") from None
    while isinstance(state, dict) and (inside := next((key for key in INSIDE if key in state), None)):
        state = state[inside]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"arch.weights={path} holds no state dict, of names and tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _fit(
    arch: DictConfig, model: nn.Module, state: dict[str, Tensor], num_classes: int, image_size: int, source: str
) -> list[str]:
    own = model.state_dict()
    if isinstance(model, VisionTransformer) and "encoder.pos_embedding" in state:
        state = interpolate_embeddings(image_size, model.patch_size, state)
    if arch.name in ("googlenet", "inception_v3"):  # whose auxiliary heads are not used
        state = {name: value for name, value in state.items() if not name.lower().startswith("aux")}
    differing = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    head = {
        name
        for name in differing
        if own[name].shape[:1] == (num_classes,) and own[name].shape[1:] == state[name].shape[1:]
    }
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [f"it lacks {_some(missing)}"] if missing else []
    if unknown := [name for name in state if name not in own]:
        wrong.append(f"it has {_some(unknown)} beside")
    if others := sorted(set(differing) - head):
        shapes = ["×".join(map(str, one[others[0]].shape)) for one in (state, own)]
        wrong.append(f"{others[0]} is {shapes[0]} there and {shapes[1]} here")
    if wrong:
        raise UserError(
            f"arch.weights={arch.weights}: {source} is not of arch {title(arch)} for images of {image_size} pixels:"
            f" {'; '.join(wrong)}"
        )
    model.load_state_dict({**own, **{name: value for name, value in state.items() if name not in head}})
    if not head:
        return [f"pretrained weights of {source}"]
    (number,) = {len(state[name]) for name in head}
    return [f"pretrained weights of {source}, whose {number} classes are others: {_some(sorted(head))} start afresh"]


def _timm(arch: DictConfig, model: nn.Module, num_classes: int, image_size: int) -> list[str]:
    import timm

    name = arch.model if arch.weights == "DEFAULT" else f"{arch.model.partition('.')[0]}.{arch.weights}"
    known = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model_pretrained(name) else None
    if known is None or not (known.hf_hub_id or known.url):
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{arch.model.partition('.')[0]}.*")]
        raise UserError(f"arch.weights={arch.weights} is unknown of {arch.model}: choose DEFAULT, {', '.join(tags)}")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    def find() -> Path | None:
        found = (try_to_load_from_cache(known.hf_hub_id, file) for file in ("model.safetensors", "pytorch_model.bin"))
        return next((Path(path) for path in found if isinstance(path, str)), None)

    _cached(
        arch, find(), f"huggingface.co/{known.hf_hub_id}", lambda: hf_hub_download(known.hf_hub_id, "model.safetensors")
    )
    path = find()
    options = {key: value for key, value in OmegaConf.to_container(arch, resolve=True).items() if key not in OURS}
    from_file = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    try:
        loaded = timm_network(name, num_classes, image_size, {**options, **from_file})
        model.load_state_dict(loaded.state_dict())
    except (RuntimeError, KeyError) as error:
        raise UserError(f"arch.weights={arch.weights}: {path} is not of {name} ({in_short(error)})") from None
    is_fresh = num_classes != known.num_classes
    fresh = f", whose {known.num_classes} classes are others: the head starts afresh" if is_fresh else ""
    return [f"pretrained weights of {path}{fresh}"]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
