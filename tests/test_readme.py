"""What README.md and docs/extending.md show works."""

import re
import subprocess
import sys

import pytest
from runs import ROOT

CHECKS = {
    "README.md": "assert client_segment(torch.randn(2, 3, 224, 224)).shape == (2, 128, 28, 28)",
    "docs/extending.md": """
x = torch.tensor([[0.0, 0.0, 1.0, 3.0, 0.0], [0.0, 5.0, 0.0, 0.0, 1.0]])  # of mean 1
compressor = OneBitQuantizer()
payload = compressor.encode(x)
assert compressor.formula_bits(x.shape) == 10 and [s.numel() for s in payload.sections] == [8, 2]
torch.testing.assert_close(compressor.decode(payload), torch.where(x > 1, 4.0, 0.25))
assert compressor.decode(compressor.encode(torch.zeros(3))).tolist() == [0, 0, 0]
""",
}


@pytest.mark.parametrize("page", CHECKS)
def test_python_examples(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    code = "\n".join([*blocks, CHECKS[page]])  # in a process of its own, as it may register a compressor
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert blocks and result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor
