"""Every key of the configuration with values that it may not take: each is refused by name, or works."""

import math
import re

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from simulation import compose

from splitlearn import checks, kinds
from splitlearn.errors import UserError

VARIANTS = [
    [],
    ["optimizer=adam", "data=image_folder", "partition=dirichlet", "schedule=multistep"],
    ["data=cifar100", "topology=sequential", "schedule=step", "exchange=u_shaped"],
    ["exchange=aligned"],
    ["exchange=send_once"],
    ["exchange=update_by_loss"],
    ["exchange=hijacking"],
    ["task=causal_lm"],
    ["task=causal_lm", "data=text", "data.root=folder"],
    ["task=causal_lm", "arch=hf", "arch.config=llama"],
    ["task=sequence_classification", "data.root=folder", "arch.width=16", "arch.depth=2"],
    ["exchange=u_shaped", "defence=[drop,maxnorm,noise,nopeek]"],
    ["schedule=constant", "arch=vgg_slim", "compressor=qu", "compressor@downlink=sp"],
]
BAD = ["abc", "", -1, 1.5, True, None, [1, 2], {"a": 1}, math.nan, math.inf, 10**30]
# Whose value is looked at where it is used, not only by its kind; all texts.
CHECKED_LATER = re.compile(
    r"(arch|data)\.name|arch\.(cuts\..*|weights|model|config|gguf)|cut|cut_back|(client|server)\.device|.*_target_|freeze|init_from"
    r"|data\.(test_)?transform|data\.classes|task\.class_weights|schedule\.milestones"
)


def leaves(node, above=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


PLAIN = [compose(*variant) for variant in VARIANTS]
CASES = {key: plain for plain in reversed(PLAIN) for key, _ in leaves(OmegaConf.to_container(plain))}


def is_of_a_kind(value, default) -> bool:
    if isinstance(default, list):
        return isinstance(value, list) and all(is_of_a_kind(item, default[0]) for item in value)
    if isinstance(default, bool) or isinstance(value, bool) or default is None:
        return type(value) is type(default)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, str) and value != ""


@pytest.mark.parametrize("key", sorted(CASES))
def test_a_bad_value_is_refused_by_name(key):
    plain = CASES[key]
    default = OmegaConf.select(plain, key)
    alternatives = [default, *kinds.defaults().get(key, ()), *checks.CHOICES.get(key, ())]
    for value in BAD:
        cfg = plain.copy()
        OmegaConf.set_struct(cfg, False)
        try:
            OmegaConf.update(cfg, key, value, merge=False)
        except OmegaConfBaseException:
            continue  # of a compressor's option; `test_hydras_errors_are_one_sentence` has these
        try:
            checks.check(cfg)
        except UserError as error:
            assert "\n" not in str(error), error
            assert key in str(error) or str(error).startswith(key.split(".")[0]), f"{key}={value}: {error}"
            continue
        fits = any(is_of_a_kind(value, other) for other in alternatives if other is not None)
        may_be_null = value is None and (None in alternatives or key in checks.AT_LEAST_ONE_OR_NONE)
        is_limit = default is None and type(value) in (int, float) and 0 < value < math.inf
        is_name = key in checks.TEXT_OR_NONE and value == "abc"
        assert fits or may_be_null or is_limit or is_name or CHECKED_LATER.fullmatch(key), f"{key}={value} is accepted"
