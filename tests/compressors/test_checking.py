"""What a codec of somebody's own gives that no payload can have is told in one sentence, by class and method."""

from math import prod

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from splitlearn.compressors import Compressor
from splitlearn.config import made_from
from splitlearn.errors import UserError

X = torch.rand(2, 3).bfloat16()


class Own(Compressor):
    """Right, but for the methods that a test gives other results."""

    codec = 250
    name = "own"

    def to_sections(self, x):
        return [x], (1, 2)

    def from_sections(self, sections, payload):
        return sections[0].view(payload.dtype)

    def formula_bits(self, shape, value_bits=32):
        return prod(shape) * value_bits


class NoFormula(Own):
    formula_bits = Compressor.formula_bits


@pytest.mark.parametrize(
    "method, gives, words",
    [
        ("to_sections", None, "gave None: it has to give a list of tensors and a tuple of parameter bytes"),
        ("to_sections", [X], "gave list: it has to give"),
        ("to_sections", (X, ()), "gave (Tensor, ()): it has to give"),
        ("to_sections", ([X.float().numpy()], ()), "gave ndarray as a section: each has to be a tensor"),
        ("to_sections", ([X] * 9, ()), "gave 9 sections: a payload has room for 8"),
        ("to_sections", ([X], (1,) * 7), "gave the parameters (1, 1, 1, 1, 1, 1, 1): up to 6 whole numbers, 0 to 255"),
        ("to_sections", ([X], (300,)), "gave the parameters (300,): up to 6"),
        ("to_sections", ([X], (-1,)), "gave the parameters (-1,): up to 6"),
        ("to_sections", ([X], (0.5,)), "gave the parameters (0.5,): up to 6"),
        ("to_sections", ([X], 3), "gave the parameters 3: up to 6"),
        ("to_sections", ([X], None), "gave the parameters None: up to 6"),
        ("from_sections", None, "gave None for a payload of 6 values of torch.bfloat16: it has to give a tensor of"),
        ("from_sections", X.view(-1)[1:], "gave 5 values of torch.bfloat16 for a payload of 6 values of"),
        ("from_sections", X.float(), "gave 6 values of torch.float32 for a payload of 6 values of torch.bfloat16"),
        ("formula_bits", None, "gave None: it has to give a number of bits"),
        ("formula_bits", float("nan"), "gave nan: it has to give a number of bits"),
    ],
)
def test_what_no_payload_can_have_is_told_by_class_and_method(method, gives, words, monkeypatch):
    monkeypatch.setattr(Own, method, lambda *arguments: gives)
    with pytest.raises(UserError) as error:
        Own().decode(Own().encode(X))
    assert str(error.value).startswith(f"Own.{method} {words}") and "\n" not in str(error.value)


@pytest.mark.parametrize("params", [(), (1,) * 6, [0, 255], (True, np.int64(7)), np.array([3, 4]), b"ab"], ids=str)
@pytest.mark.parametrize("num_sections", [1, 8])
def test_what_a_payload_can_have_crosses(num_sections, params, monkeypatch):
    monkeypatch.setattr(Own, "to_sections", lambda self, x: ([x] * num_sections, params))
    monkeypatch.setattr(Own, "from_sections", lambda self, sections, payload: sections[0].view(payload.dtype))
    payload = Own().encode(X)
    assert payload.params == (*params, *[0] * (6 - len(params))) and len(payload.sections) == num_sections
    assert torch.equal(Own().decode(payload), X)


def test_values_may_come_in_any_strides(monkeypatch):
    monkeypatch.setattr(Own, "from_sections", lambda *arguments: X.t().contiguous().t())
    assert torch.equal(Own().decode(Own().encode(X)), X)


def test_a_method_that_is_missing_is_told_before_a_run():
    cfg = OmegaConf.create({"compressor": {"_target_": f"{__name__}.NoFormula"}})
    with pytest.raises(UserError, match=r"^compressor\._target_=.*\.NoFormula has to have formula_bits too"):
        made_from(cfg, "compressor")
