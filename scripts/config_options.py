"""What conf/ offers, with its comments: groups, their options, and keys; for document_config.py."""

import inspect
import re
import textwrap
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from hydra.core.config_store import ConfigStore
from hydra.utils import get_class
from omegaconf import OmegaConf
from script import ROOT

import splitlearn.compose  # noqa: F401  registers what is no file

CONF = ROOT / "conf"
INTERNAL = {"name", "_target_"}  # which the choice of the option sets


@dataclass
class Key:
    """A key of a YAML file: its value as it is written there ("" of a mapping), and the comment on its line."""

    value: str
    comment: str


@dataclass
class Option:
    """What a group can be set to.

    Attributes:
        about: what it is, for people.
        keys: by their dotted path below the group.
        sets: of one that changes other groups: what it sets, as on the command line.
        brings: keys that no other file has, by their whole paths.
        package: where its keys are, if not below its group.
    """

    about: str
    keys: dict[str, Key] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    brings: dict[str, Key] = field(default_factory=dict)
    package: str | None = None


class Source:
    """A YAML file, with its comments."""

    def __init__(self, path: Path):
        self._text = path.read_text(encoding="utf-8")
        self._lines = self._text.splitlines()
        self._root = yaml.compose(self._text)
        before = list(self._lines[: self._root.start_mark.line])
        self.package = next((match[1] for line in before if (match := re.match(r"# @package (\S+)", line))), None)
        self.about = " ".join(line.lstrip("# ") for line in before if line.startswith("#") and "@package" not in line)

    def keys(self) -> dict[str, Key]:
        """All keys by their dotted paths, but for Hydra's own and the list of defaults."""
        found = {}

        def walk(node: yaml.MappingNode, above: str) -> None:
            for key, value in node.value:
                path = f"{above}{key.value}"
                if path == "defaults" or (path.startswith("hydra") and not path.startswith("hydra.sweeper.params")):
                    if path in ("hydra", "hydra.sweeper"):
                        walk(value, f"{path}.")
                    continue
                nested = isinstance(value, yaml.MappingNode) and not value.flow_style
                found[path] = Key("" if nested else self._written(value), self._comment(key if nested else value))
                if nested:
                    walk(value, f"{path}.")

        walk(self._root, "")
        return found

    def defaults(self) -> dict[str, Key]:
        """The list of defaults: {group: option}; a file that this one begins with is {"": its name}."""
        entries = next((value.value for key, value in self._root.value if key.value == "defaults"), [])
        found = {}
        for entry in entries:
            if isinstance(entry, yaml.ScalarNode):
                if entry.value != "_self_":
                    found[""] = Key(entry.value, "")
                continue
            ((key, value),) = entry.value
            group = key.value.removeprefix("override ").lstrip("/")
            if not group.startswith("hydra"):
                found[group] = Key(value.value, self._comment(value))
        return found

    def _written(self, node: yaml.Node) -> str:
        return self._text[node.start_mark.index : node.end_mark.index].strip()

    def _comment(self, node: yaml.Node) -> str:
        """What stands after a key and its value, and in the lines below it that hold nothing but more of it."""
        line = node.end_mark.line
        match = re.match(r":?\s*#\s*(.*)", self._lines[line][node.end_mark.column :])
        if match is None:
            return ""
        words, column = [match[1]], self._lines[line].index("#", node.end_mark.column)
        for below in self._lines[line + 1 :]:
            if below[: column + 1] != " " * column + "#":
                break
            words.append(below[column + 1 :].strip())
        return " ".join(words)


def groups() -> dict[str, dict[str, Option]]:
    """All groups with their options: {group: {option: …}}, in the order of the list of defaults."""
    folders = {path.parent.relative_to(CONF).as_posix() for path in CONF.rglob("*/*.yaml")}
    registered = {
        group: found
        for group in ConfigStore.instance().repo
        if group != "hydra" and (found := registered_options(group))
    }
    known = {group for group in folders | registered.keys() if group.split("/")[0] != "hydra"}
    order = [group.split("@")[0] for group in Source(CONF / "config.yaml").defaults()]
    ordered = [*dict.fromkeys(group for group in order if group in known), *sorted(known - set(order))]
    return {group: options_in_files(group) | registered.get(group, {}) for group in ordered}


def options_in_files(group: str) -> dict[str, Option]:
    return {path.stem: option_in(path) for path in sorted((CONF / group).glob("*.yaml"))}


def option_in(path: Path) -> Option:
    """The option that a file of a group is, with the keys of the file that it begins with."""
    source = Source(path)
    keys, defaults = source.keys(), source.defaults()
    about = source.about or (f"`{keys['_target_'].value}`" if "_target_" in keys else "")
    if source.package == "_global_":
        own = {name: key for name, key in keys.items() if name.startswith(f"{path.parent.name}.")}
        others = {name: key for name, key in keys.items() if name not in own}
        sets = [f"{group}={key.value}" for group, key in defaults.items() if group]
        sets += [
            f"{name.removeprefix('hydra.sweeper.params.')}={key.value}" for name, key in others.items() if key.value
        ]
        own = {name.partition(".")[2]: key for name, key in own.items()}
        own = {name: key for name, key in own.items() if name not in INTERNAL and key.value}
        known = Source(CONF / "config.yaml").keys()
        brings = {name: key for name, key in others.items() if key.comment and name not in known}
        return Option(about, own, sets, brings)
    if base := defaults.get(""):
        inherited = option_in(path.with_name(f"{base.value}.yaml"))
        for name, key in keys.items():
            key.comment = key.comment or getattr(inherited.keys.get(name), "comment", "")
        keys = inherited.keys | keys
    return Option(about, {name: key for name, key in keys.items() if name not in INTERNAL}, package=source.package)


def registered_options(group: str) -> dict[str, Option]:
    """The options of a group that are dataclasses of the program, such as the compressors."""
    entries = ConfigStore.instance().repo.get(group)
    found, names = {}, {}
    for file, entry in entries.items() if isinstance(entries, dict) else ():
        node, name = getattr(entry, "node", None), file.removesuffix(".yaml")
        if not OmegaConf.is_dict(node) or "_target_" not in node:
            continue
        cls = get_class(node._target_)
        defaults = {item.name: item.default for item in fields(cls)}
        changed = [f"{key}={value}" for key, value in node.items() if key in defaults and value != defaults[key]]
        if changed:
            found[name] = Option(f"`{names[cls]}` with `{' '.join(changed)}`")
            continue
        names[cls] = name
        comments = {}
        for base in reversed(cls.__mro__):
            comments |= arguments_of(base)
        keys = {key: Key(written(value), comments.get(key, "")) for key, value in defaults.items()}
        found[name] = Option(summary_of(cls), keys)
    return found


def written(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def summary_of(cls: type) -> str:
    """The first paragraph of a class's docstring, and its source."""
    text = inspect.getdoc(cls) or ""
    source = re.search(r"^Source: (.*?)(\n\n|\Z)", text, re.S | re.M)
    return " ".join([*text.split("\n\n")[0].split(), *(f"Source: {source[1]}".split() if source else [])])


def arguments_of(cls: type) -> dict[str, str]:
    """What a class's own docstring says of its arguments."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{inspect.cleandoc(cls.__doc__ or '')}\n", re.M)
    entries = re.split(r"^(\w+(?:, \w+)*): ", textwrap.dedent(section[1]), flags=re.M)[1:] if section else []
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {name: " ".join(text.split()) for names, text in pairs for name in names.split(", ")}


def undocumented() -> list[str]:
    """Keys of which nothing says what they are."""
    missing = [name for name, key in Source(CONF / "config.yaml").keys().items() if key.value and not key.comment]
    for group, options in groups().items():
        keys = [pair for option in options.values() for pair in option.keys.items()]
        said = {name for name, key in keys if key.comment or not key.value}
        missing += [f"{group}.{name}" for name, _ in keys if name not in said]
    return list(dict.fromkeys(missing))
