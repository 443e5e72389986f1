"""What README.md shows works."""

import re
import subprocess
import sys

from runs import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
CHECK_SIGN = """
x = torch.randn(5, 7, 3)
compressor = SignCompressor(scale=2.0)
payload = compressor.encode(x)
assert compressor.formula_bits(x.shape) == 105 and [s.numel() for s in payload.sections] == [4, 14]
torch.testing.assert_close(compressor.decode(payload), 2 * x.abs().mean() * x.sign())
"""


def test_python_examples():
    code = "\n".join([*PYTHON, CHECK_SIGN])  # in a process of its own, as the second registers a compressor
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_config_group_is_explained():
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"hydra"}
    assert not {group for group in groups | {"compressor", "compressor@downlink"} if f"`{group}`" not in README}
