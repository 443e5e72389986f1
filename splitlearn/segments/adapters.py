"""Low-rank adapters (LoRA) on a network's linear layers, by the library peft: the network itself stays as it is.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.seeds import derive, torch_drawing_from
from splitlearn.segments.tracing import in_short

SIDES = ("both", "client", "server")
LINEAR = ("Linear", "Conv1D")  # the latter is GPT-2's in transformers
PREFIX = "base_model.model."  # of names in a file of peft's
NAME = "default"  # of the adapter, in the names of its weights


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("lora.rank needs the package peft: pip install -e '.[hf]'") from None
    return peft


def _configured(options: Any, targets: list[str], **more: Any) -> Any:
    """peft's configuration of adapters beside these layers."""
    return _peft().LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,
        lora_dropout=options.dropout,
        target_modules=targets,
        **more,
    )


def inject(model: nn.Module, options: Any, seed: int, is_held: Callable[[str], bool] = lambda path: True) -> None:
    """Puts an adapter beside linear layers of a model, in place; but for its heads, nothing else of it trains any more.

    Args:
        model: any. Without `targets`, the linear layers within its blocks (`blocks_path`), else all but the last.
            Where it has a head that starts afresh, `heads_paths` says where.
        options: rank, alpha (null: twice the rank), dropout, targets (ends of layers' paths; null), of the config.
        seed: of the adapters' weights.
        is_held: whether a layer, by its path, is to have one.

    Raises:
        UserError: there is no such layer, or peft is not installed.
    """
    peft = _peft()
    layers = [path for path, module in model.named_modules() if type(module).__name__ in LINEAR]
    targets = options.targets
    if targets is None:
        within = getattr(model, "blocks_path", None)
        wanted = [path for path in layers if path.startswith(f"{within}.")] if within else layers[:-1]
    else:
        wanted = [path for path in layers if any(f".{path}".endswith(f".{end}") for end in targets)]
    wanted = [path for path in wanted if is_held(path)]
    if not wanted:
        ends = ", ".join(sorted({path.rpartition(".")[2] for path in layers})) or "none"
        raise UserError(
            f"lora.targets={'null' if targets is None else f'[{chr(44).join(targets)}]'} matches no linear layer on"
            f" lora.sides={options.sides}: there are {ends}"
        )
    config = _configured(options, wanted)
    try:
        with warnings.catch_warnings(), torch_drawing_from(derive(seed, "lora")):
            warnings.simplefilter("ignore")  # that GPT-2's layers are transposed, which is seen to
            peft.inject_adapter_in_model(config, model)
        for path in getattr(model, "heads_paths", ()):
            for name, module in model.get_submodule(path).named_modules(prefix=path):
                for parameter in module.parameters(recurse=False) if is_held(name) else ():
                    parameter.requires_grad_(True)
    except Exception as error:
        raise UserError(f"lora.rank={options.rank} is not possible in this network: {in_short(error)}") from None


def has_adapters(model: nn.Module) -> bool:
    return any(".lora_A." in name for name, _ in model.named_parameters())


def beside(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network without adapters under the names that one with adapters has, and `own` adapters beside them.

    Weights that have adapters, or are for a network without any, are given back.
    """
    adapters = {name: value for name, value in own.items() if ".lora_" in name}
    if not adapters or adapters.keys() & weights.keys():
        return weights
    renamed = {name.replace(".base_layer.", "."): name for name in own}
    return {renamed.get(name, name): value for name, value in weights.items()} | adapters


def merge(model: nn.Module) -> None:
    """Adds the adapters to the weights beside them, in place; the model then is as it was before `inject`."""
    layers = _peft().tuners.lora.LoraLayer
    for path, module in list(model.named_modules()):
        if isinstance(module, layers):
            module.merge()
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, module.get_base_layer())


def save(model: nn.Module, options: Any, base: str | None, folder: Path) -> dict[str, Tensor]:
    """Writes what trains beside a base as a folder that `peft.PeftModel.from_pretrained(base, folder)` loads.

    Returns it: the adapters, and the heads.
    """
    from safetensors.torch import save_file

    state = {
        PREFIX + name.replace(f".{NAME}.", "."): tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if ".lora_" in name
    }
    targets = sorted({name.partition(".lora_")[0].removeprefix(PREFIX) for name in state})
    heads = getattr(model, "heads_paths", ())
    for path in heads:
        of_head = model.get_submodule(path).state_dict(prefix=f"{PREFIX}{path}.")
        state |= {name: tensor.contiguous() for name, tensor in of_head.items()}
    is_transposed = any(type(model.get_submodule(path).get_base_layer()).__name__ == "Conv1D" for path in targets)
    config = _configured(
        options,
        targets,
        modules_to_save=list(heads) or None,
        base_model_name_or_path=base,
        fan_in_fan_out=is_transposed,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return state
