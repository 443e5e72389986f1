"""Models of Hugging Face's transformers, by a folder or a name of the hub, or with random weights."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from splitlearn.errors import UserError
from splitlearn.segments.forward import ENDED
from splitlearn.segments.tracing import in_short

DTYPES = ("float32", "bfloat16", "float16")
WIDER = 4  # times the width, of feedforward nets where nothing else is said
SIZES = {"depth": 4, "width": 128, "heads": 4}  # of a random start, where nothing is said


class Scores:
    """The forward of such a model: (B, T) int64 tokens to (B, T, V) scores, of the first V tokens that it knows."""

    def __init__(self, model: nn.Module, vocab_size: int):
        self.model, self.vocab_size = model, vocab_size

    def __call__(self, tokens: Tensor) -> Tensor:
        options = {}
        if tokens.is_meta:  # where the library looks at values to find a mask
            shape = len(tokens), 1, tokens.shape[1], tokens.shape[1]
            options["attention_mask"] = torch.ones(shape, dtype=torch.bool, device="meta")
        scores = type(self.model).forward(self.model, input_ids=tokens, **options).logits
        return scores if scores.shape[2] == self.vocab_size else scores[..., : self.vocab_size]


class Labels:
    """The forward of a classifier: (B, T) int64 tokens, -1 where a text has ended, to (B, classes) scores."""

    def __init__(self, model: nn.Module):
        self.model, self.padding = model, getattr(model.config, "pad_token_id", None) or 0

    def __call__(self, tokens: Tensor) -> Tensor:
        is_there = tokens != ENDED
        mask = is_there.long()
        if tokens.is_meta:  # where the library looks at values to find a mask
            mask = is_there[:, None, None].expand(-1, 1, tokens.shape[1], -1)
        ids = torch.where(is_there, tokens, self.padding)
        return type(self.model).forward(self.model, input_ids=ids, attention_mask=mask).logits


def network(
    vocab_size: int,
    context: int,
    num_classes: int | None = None,
    model: str | None = None,
    config: str | None = None,
    **options: Any,
):
    """The network of a folder's or a hub's configuration, or of a kind with sizes; its weights are drawn at random.

    Args:
        vocab_size: V, tokens of the data.
        context: T, tokens that it takes at once.
        num_classes: that texts are of; None for a language model.
        model: a folder, or a name of the hub; `load` has its weights.
        config: a kind of model instead, such as llama.
        options: the others of conf/arch/hf.yaml, and any of the kind's configuration.

    Returns:
        A module from (B, T) int64 to (B, T, V), or (B, classes).

    Raises:
        UserError: there is no such model, it does not fit the data, or transformers is not installed.
    """
    transformers = _transformers()
    chosen = {name: options.pop(name) for name in ("gguf", "dtype", "download")}
    if (model is None) == (config is None):
        raise UserError("arch=hf needs one of arch.model=<folder or hub's name> and arch.config=<kind, such as llama>")
    if chosen["dtype"] not in DTYPES:
        raise UserError(f"arch.dtype={chosen['dtype']} is unknown: choose {', '.join(DTYPES)}")
    if config is not None:
        found = _sized(transformers, config, vocab_size, context, options, num_classes is not None)
    else:
        given = [name for name in SIZES if options.pop(name) is not None]
        if given:
            raise UserError(f"arch.{given[0]} is for arch.config=<kind>: arch.model={model} has sizes of its own")
        found = _read(transformers.AutoConfig, model, {**chosen, "dtype": None}, **options)
    found.use_cache = False
    if num_classes is not None:
        found.num_labels = num_classes
        if model is not None and found.pad_token_id is None:  # which decoders find a text's last token by
            found.pad_token_id = getattr(found, "eos_token_id", None)
    elif getattr(found, "is_decoder", None) is False:
        found.is_decoder = True  # of BERT's family: each token sees those before it
    known, longest = found.vocab_size, getattr(found, "max_position_embeddings", None)
    if known < vocab_size:
        raise UserError(
            f"the data have {vocab_size:,} tokens, and arch.model={model} knows {known:,}: set data.tokenizer={model}"
        )
    if longest and longest < context:
        key = "task.context" if num_classes is None else "data.max_length"
        raise UserError(f"{key}={context} is more than arch.model={model} takes at once: set {longest} or less")
    try:
        built = _kind(num_classes is not None).from_config(found, dtype=getattr(torch, chosen["dtype"]))
    except Exception as error:
        raise UserError(
            f"arch.{f'config={config}' if config else f'model={model}'} is not possible: {in_short(error)}"
        ) from None
    if found.pad_token_id is None and any(
        hasattr(one, "create_position_ids_from_input_ids") for one in built.modules()
    ):
        raise UserError(
            f"arch.config={config} counts positions by a padding token, which a network of one's own has not got: use"
            " arch.config=bert, or a trained model with arch.model"
        )
    built.blocks_path = _blocks(built, found.num_hidden_layers)
    built.before_blocks = next(path for path, one in built.named_modules() if one is built.get_input_embeddings())
    built.forward = Scores(built, vocab_size) if num_classes is None else Labels(built)
    if num_classes is not None:
        own = [path for path, one in built.named_children() if one is not built.base_model and [*one.parameters()]]
        built.heads_paths = tuple(own)
    return built


def load(arch: DictConfig, built: nn.Module) -> list[str]:
    """Gives a network of `network` the weights of arch.model; returns what the user should know of it.

    Raises:
        UserError: they are not there, or not all.
    """
    chosen = {name: arch[name] for name in ("gguf", "dtype", "download")}
    is_classifier = isinstance(vars(built)["forward"], Labels)
    options = {"num_labels": built.config.num_labels, "ignore_mismatched_sizes": True} if is_classifier else {}
    found, about = _read(_kind(is_classifier), arch.model, chosen, output_loading_info=True, **options)
    built.load_state_dict(found.state_dict())
    if missing := sorted({*about["missing_keys"], *(one[0] for one in about.get("mismatched_keys") or ())}):
        return [f"arch.model={arch.model} has no weights of {', '.join(missing[:3])}, which start afresh"]
    return [f"pretrained weights of {os.path.join(arch.model, arch.gguf or '').rstrip('/')}"]


def save(built: nn.Module, folder: Path) -> None:
    """Writes a network of `network` as a folder that `AutoModelForCausalLM.from_pretrained` loads."""
    ends = (built.get_input_embeddings(), built.get_output_embeddings())
    if ends[1] is not None and ends[0].weight is not ends[1].weight:  # which a cut may have parted
        built.config.tie_word_embeddings = False
    vars(built).pop("forward", None)
    built.save_pretrained(folder)


def _kind(is_classifier: bool) -> Any:
    transformers = _transformers()
    return transformers.AutoModelForSequenceClassification if is_classifier else transformers.AutoModelForCausalLM


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError("arch=hf needs the package transformers: pip install -e '.[hf]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _sized(
    transformers: Any, kind: str, vocab_size: int, context: int, options: dict[str, Any], is_classifier: bool
) -> Any:
    """A kind's configuration with these sizes, and what follows from them where it has the key."""
    chosen = {name: options.pop(name) for name in SIZES}
    for name, value in chosen.items():
        if value is not None and not (type(value) is int and value >= 1):
            raise UserError(f"arch.{name}={value} must be a whole number, at least 1, or null")
    depth, width, heads = (chosen[name] or default for name, default in SIZES.items())
    sizes = {"num_hidden_layers": depth, "hidden_size": width, "num_attention_heads": heads}
    if width % heads:
        raise UserError(f"arch.width={width} must be a multiple of arch.heads={heads}")
    sizes |= {"vocab_size": vocab_size, "max_position_embeddings": context}
    if kind not in transformers.CONFIG_MAPPING:
        raise UserError(f"arch.config={kind} is no kind of model that transformers knows: such as gpt2, llama, qwen3")
    default = transformers.AutoConfig.for_model(kind)
    follows = {
        "intermediate_size": WIDER * width,
        "ffn_dim": WIDER * width,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "word_embed_proj_dim": width,
    }
    sizes |= {name: value for name, value in follows.items() if hasattr(default, name)}
    if unknown := [name for name in options if not hasattr(default, name)]:
        raise UserError(f"arch.{unknown[0]} is no key of the configuration of arch.config={kind}")
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if is_classifier and default.pad_token_id is None:  # a decoder, which finds a text's last token by it
        special |= {"pad_token_id": vocab_size, "vocab_size": vocab_size + 1}
    try:
        return transformers.AutoConfig.for_model(kind, **{**sizes, **special, **options})
    except Exception as error:
        raise UserError(f"arch.config={kind} does not take these options: {in_short(error)}") from None


def _read(cls: Any, model: str, chosen: dict[str, Any], **options: Any) -> Any:
    """What `cls` reads of a folder, or of the hub or its cache."""
    if chosen["gguf"]:
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise UserError(f"arch.gguf={chosen['gguf']} needs the package gguf: pip install gguf") from None
        options["gguf_file"] = chosen["gguf"]
    if chosen["dtype"]:
        options["dtype"] = getattr(torch, chosen["dtype"])
    folder = os.path.expanduser(model)
    try:
        with redirect_stderr(io.StringIO()):  # progress
            return cls.from_pretrained(folder, local_files_only=not chosen["download"], **options)
    except Exception as error:
        is_there = os.path.isdir(folder)
        hint = "" if is_there or chosen["download"] else ", or set arch.download=true for a name of the hub"
        raise UserError(
            f"arch.model={model} cannot be read ({in_short(error)}): set it to a folder with config.json and"
            f" weights{hint}"
        ) from None


def _blocks(model: nn.Module, depth: int) -> str | None:
    """Path of the list of a model's blocks."""
    lists = ((path, one) for path, one in model.named_modules() if isinstance(one, nn.ModuleList))
    return next((path for path, one in lists if len(one) == depth), None)
