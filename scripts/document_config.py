"""Writes docs/configuration.md from conf/: every group with its options, every key with its default and its comment.

    python scripts/document_config.py

What a key is for is the comment on its line in the YAML, and what an option is for the comment at the head of its file.
Of options that the program registers, such as the compressors, it is the docstring of their class, with its Args. So a
new key, option or group is on the page without a change here.
"""

import argparse
import re

from config_options import CONF, Key, Option, Source, groups, registered_options, undocumented
from script import ROOT, start

PAGE = ROOT / "docs" / "configuration.md"

INTRO = """\
# Configuration

Set anything on the command line with `key=value` or `group=option`, as in
`python launch.py cut=deep compressor=qu compressor.bits=4`.
`python launch.py --cfg job` shows the result without running it, and `python launch.py arch=resnet18 'cut=?'` where a
network can be cut, with the shape and the bytes of each map.

<!-- Made from conf/ by scripts/document_config.py: edit the comments there, and run it again. -->
"""
APART = {"attack": "Of `scripts/attack.py`, and not of launch.py: see [privacy](privacy.md)."}  # that no run has
COMING = """\
## Coming from the authors' program

Their options of `main.py`, and ours:

| theirs | ours |
|---|---|
| `--role server\\|client` | `role=server\\|client`, or neither: torchrun's rank, or all ranks at once |
| `--arch vgg19_cifar10\\|res18_cifar100\\|res34_imagenet` | `experiment=…`; or `arch=` and `data=` apart |
| `--cutlayer shallow\\|medium\\|deep` | `cut=` |
| `--path` | `data.root=` |
| `--compressor qu\\|sp\\|ms\\|others` | `compressor=qu\\|sp\\|rt\\|ms\\|none` |
| `--ratio` | `compressor.ratio=` |
| `--bit` | `compressor.bits=` |
| `--client_ip`, `--client_port` | not needed: clients call the server; `client.index=` says which one this is |
| `--server_ip`, `--server_port` | `rpc.host=`, `rpc.port=`, or `MASTER_ADDR`, `MASTER_PORT` |
| `--client_device`, `--server_device` | `client.device=`, `server.device=` |
| `--batch_size` | `batch_size=` |

The cuts of the presets have the map shapes of the paper. Its shallow cut of the ResNets lies inside a residual block,
where its authors' program loses the skip connection; ours lies after that block, `layer1.0`, with the same map.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def prose(text: str) -> str:
    """A comment as Markdown: what looks like a tag or emphasis is none; a single sentence has no full stop."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<*])", r"\\\1", part) for part in parts[::2]]
    text = "`".join(parts)
    return text if ". " in text else text.removesuffix(".")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def keys_table(group: str, options: dict[str, Option]) -> str:
    """The keys of all options of a group, a row for each thing that a key is; where defaults differ, each option's."""
    found: dict[str, dict[str, dict[str, Key]]] = {}
    for name, option in options.items():
        paths = {f"{option.package or group}.{key}": one for key, one in option.keys.items()} | option.brings
        for path, one in paths.items():
            found.setdefault(path, {}).setdefault(one.comment, {})[name] = one
    rows = []
    for path, meanings in found.items():
        unsaid = meanings.pop("", {})
        for comment, having in meanings.items() or {"": {}}.items():
            having, unsaid = having | unsaid, {}
            values: dict[str, list[str]] = {}
            for name in options:
                if name in having:
                    values.setdefault(having[name].value, []).append(name)
            if not comment and not any(values):
                continue
            if len(values) == 1 and len(having) == len(options):
                default = code(next(iter(values)))
            else:
                default = "; ".join(f"{', '.join(names)}: {code(value)}" for value, names in values.items() if value)
            rows.append([code(path), default, prose(comment)])
    return table(["key", "default", "what it is"], rows) if rows else ""


def options_keys_table(group: str, options: dict[str, Option]) -> str:
    """The keys of each option, where the same key is something else in each; first those that all have alike."""
    having = [option.keys for option in options.values() if option.keys]
    shared = [key for key in having[0] if all(keys.get(key) == having[0][key] for keys in having)]
    described = [("all", key, having[0][key]) for key in shared]
    for name, option in options.items():
        described += [(code(name), key, found) for key, found in option.keys.items() if key not in shared]
    rows = [[of, code(f"{group}.{key}"), code(found.value), prose(found.comment)] for of, key, found in described]
    return table(["of", "key", "default", "what it is"], rows)


def group_section(group: str, options: dict[str, Option], chosen: Key | None) -> str:
    registered = registered_options(group)
    text = [f"## `{group}`\n"]
    if chosen and chosen.comment:
        sentence = chosen.comment[0].upper() + chosen.comment[1:]
        text.append(f"{prose(sentence)}.\n")
    elif group in APART:
        text.append(f"{APART[group]}\n")
    rows = []
    for name, option in options.items():
        about = f"{option.about} Sets `{' '.join(option.sets)}`." if option.sets else option.about
        rows.append([code(name) + (" (default)" if chosen and chosen.value == name else ""), prose(about)])
    text.append(table(["option", "what it is"], rows))
    alone = {name: option for name, option in options.items() if option.keys or option.brings}
    if registered:
        text.append(options_keys_table(group, alone))
    elif alone:
        text.append(keys_table(group.replace("/", "."), options))
    return "\n".join(text)


def choices_of_options(chosen: dict[str, Key]) -> dict[str, Key]:
    """Choices of a compressor that only some options bring, such as an exchange with more channels."""
    found = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        for group, key in Source(path).defaults().items():
            if "@" in group and group not in chosen and key.comment:
                found[group] = Key(key.value, f"with `{path.parent.name}={path.stem}`: {key.comment}")
    return found


def page() -> str:
    """The text of docs/configuration.md."""
    main, found = Source(CONF / "config.yaml"), groups()
    chosen, text = main.defaults(), [INTRO, "## Groups\n"]
    rows, places = [], list(chosen)
    choices = (chosen | choices_of_options(chosen)).items()
    for group, key in sorted(choices, key=lambda choice: places.index(choice[0].split("@")[0])):
        section = group.split("@")[0]
        names = ", ".join(map(code, found[section])) if group == section else f"the same as of `{section}`"
        default = code(key.value) if key.value != "null" else ""
        rows.append([f"[`{group}`](#{section.replace('/', '')})", default, names, prose(key.comment)])
    text.append(table(["group", "default", "options", "what it is"], rows))
    text.append("## Keys of a run\n")
    keys = {name: key for name, key in main.keys().items() if key.value or key.comment}
    rows = [[code(name), code(key.value), prose(key.comment)] for name, key in keys.items()]
    text.append(table(["key", "default", "what it is"], rows))
    text += [group_section(group, options, chosen.get(group)) for group, options in found.items()]
    return "\n".join([*text, COMING])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(groups())} groups")
    if missing := undocumented():
        print(f"without a comment: {', '.join(missing)}")


if __name__ == "__main__":
    start(main)
