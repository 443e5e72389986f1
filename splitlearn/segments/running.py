"""Cuts a model by running it, for those that torch.fx cannot trace: it needs to know nothing of the architecture.

    part                     what its modules do when it runs the model's own forward
    from the input           compute, until the module at its end returns; there the forward stops
    from a cut               what comes before the cut and has parameters gives zeros of the right shape, the module at
                             the cut gives the smashed data, and the rest computes

So masks, positions and rotary embeddings, which have no parameters, are computed in each part, from a placeholder of
the input's shape: the input itself does not cross. Which parameters a part needs is read from autograd's graph of one
run (see recording.py). A part is a copy of the model's modules, without the parameters that it does not need; those
that it has are the model's, under the model's names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from splitlearn.seeds import torch_drawing_from
from splitlearn.segments.cutpoint import CutPoint
from splitlearn.segments.forward import Emptied, Run, Stop, call, lengths_of, run_of, set_absent
from splitlearn.segments.recording import Recording, is_below, only_tensor, parameters_of
from splitlearn.segments.tracing import Refusal, in_short, mode


def split(model: nn.Module, cut: str, example: Tensor, lengths: Tensor | None = None) -> tuple[nn.Module, nn.Module]:
    """Cuts a model, or a part of one, as `segments.split` does.

    Raises:
        Refusal: it is not possible there.
    """
    recording = Recording(model, example)
    recording.sides(cut)  # before more is run
    run, other, of_other = _prepared(model, example, recording, lengths)
    first, last = _divided(model, cut, recording, run)
    for x, of_samples in ((example, lengths), (other, of_other)):
        _try(first, last, x, run_part(model, x, of_samples), of_samples)
    _try_training(model, first, last, example)
    return first, last


def valid_cuts(model: nn.Module, example: Tensor, lengths: Tensor | None = None) -> Iterator[CutPoint]:
    """All cuts that `split` accepts, in the order of computation; of modules with the same output the outermost.

    Each is tried on one input.
    """
    recording, found = Recording(model, example), {}
    for path in recording.outputs:
        with suppress(Refusal):
            recording.sides(path)
            found[recording.node(path)] = path
    if not found:
        return
    run, other, of_other = _prepared(model, example, recording, lengths)
    expected = run_part(model, other, of_other)
    for path in found.values():
        with suppress(Refusal):
            first, last = _divided(model, path, recording, run)
            _try(first, last, other, expected, of_other)
            output, is_ragged = only_tensor(recording.outputs[path]), lengths is not None and run_of(last).is_ragged
            yield CutPoint(path, tuple(output.shape[1:]), output.dtype, is_ragged=is_ragged)


def _prepared(
    model: nn.Module, example: Tensor, recording: Recording, lengths: Tensor | None
) -> tuple[Run, Tensor, Tensor | None]:
    """The forward that parts are made of, and an input of other sizes to try them with, with its samples' lengths."""
    run = run_of(model)
    if run is not None:
        return run, _noise(run.map_shape(run.sizes[1]), example, seed=1), None
    other, found = _recorded_otherwise(model, example)
    sizes = tuple(example.shape), tuple(other.shape)
    of_other = None if lengths is None else lengths_of(other)
    return Run(_copied(model), recording.blanks(found), sizes, example.dtype), other, of_other


def _divided(model: nn.Module, cut: str, recording: Recording, run: Run) -> tuple[nn.Module, nn.Module]:
    before, after = recording.sides(cut)
    order = list(recording.outputs)
    done = set(order[: order.index(cut) + 1])
    for name in parameters_of(model).keys() - before - after:  # what neither depends on goes with its module
        (before if name.rpartition(".")[0] in done else after).add(name)
    return _part(run, model, cut, before, done, 0), _part(run, model, cut, after, done, 1)


def _recorded_otherwise(model: nn.Module, example: Tensor) -> tuple[Tensor, Recording]:
    """An input of another batch size and, if the model takes it, another length; and what the model gives for it."""
    if example.is_floating_point():
        larger = _noise((len(example) + 1, *example.shape[1:]), example, seed=2)
    else:
        larger = torch.cat([example, example[-1:]])
    shorter = larger[:, 1:] if not larger.is_floating_point() and larger.dim() == 2 and larger.shape[1] > 1 else larger
    for x in (shorter, larger):
        try:
            return x, Recording(model, x)
        except Refusal:
            if x is larger:
                raise
    raise AssertionError


def _noise(shape: tuple[int, ...], like: Tensor, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(like)


def _copied(model: nn.Module) -> nn.Module:
    """All modules anew, with the same parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _part(run: Run, model: nn.Module, cut: str, own: set[str], done: set[str], index: int) -> nn.Module:
    """A part of the model that `run` is the forward of: up to the cut (index 0), or from there on (1)."""
    part = _copied(run.part)
    new = run_of(part)
    modules = dict(part.named_modules(remove_duplicate=False))
    for name, parameter in parameters_of(part).items():
        if name not in own:
            path, _, leaf = name.rpartition(".")
            modules[path]._parameters[leaf] = None
            set_absent(modules[path], leaf, parameter, parameter.device)
            new.absent.append((modules[path], leaf))
    kept = dict(part.named_buffers(remove_duplicate=False)).keys() & model.state_dict().keys()
    for name in kept:  # a state has each once; one that does not change may be in use on both sides
        path, _, leaf = name.rpartition(".")
        if (path in done) != (index == 0):
            owner = modules[path]
            owner._non_persistent_buffers_set = {*owner._non_persistent_buffers_set, leaf}
    if index == 0:
        new.end = cut
        modules[cut].register_forward_hook(Stop())
        return part
    new.start, emptied = cut, []
    for path in sorted(done):  # outer modules come before those within them
        has_own = any(name.startswith(f"{path}.") for name in own)
        has_any = next(model.get_submodule(path).parameters(), None) is not None
        is_needed = path == cut or path == run.start or (has_any and not has_own)
        if is_needed and path in new.blanks and not is_below(path, emptied):
            emptied.append(path)
            modules[path].forward = Emptied(new.blanks[path], path == cut)
    return part


# Trying


def _try(first: nn.Module, last: nn.Module, x: Tensor, expected: Tensor, lengths: Tensor | None) -> None:
    """
    Raises:
        Refusal: the parts do not compute what the model does.
    """
    of_map = lengths if lengths is not None and run_of(last).is_ragged else None
    try:
        found = run_part(last, run_part(first, x, lengths), of_map)
    except Exception as error:  # whatever zeros lead to
        raise Refusal(f"the part behind it cannot run ({in_short(error)})") from None
    if found.shape != expected.shape or not (found.is_meta or torch.allclose(found, expected, equal_nan=True)):
        raise Refusal("the halves do not compute what the model does")


def _try_training(model: nn.Module, first: nn.Module, last: nn.Module, x: Tensor) -> None:
    """
    Raises:
        Refusal: a part changes a buffer that is not its own.
    """
    kept = model.state_dict().keys()
    for part in (first, last):
        before = {name: (buffer, buffer.clone()) for name, buffer in part.named_buffers()}
        try:
            x = run_part(part, x, training=True)
        except Exception as error:
            raise Refusal(f"in training, it cannot run ({in_short(error)})") from None
        finally:
            changed = {name for name, (buffer, old) in before.items() if not buffer.is_meta and _differ(buffer, old)}
            for name in changed:
                before[name][0].copy_(before[name][1])
        if others := sorted(kept & changed - part.state_dict().keys()):
            raise Refusal(f"both segments would change {others[0]}")


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one.nan_to_num(), other.nan_to_num())


@torch.no_grad()
def run_part(part: nn.Module, x: Tensor, lengths: Tensor | None = None, training: bool = False) -> Tensor:
    """What a part gives; notes whether it writes into what it is given."""
    given = x.clone()
    version = given._version
    with mode(part, training), torch_drawing_from(0):
        output = call(part, given, lengths)
    if (run := run_of(part)) and given._version != version:
        run.writes = True
    return output
