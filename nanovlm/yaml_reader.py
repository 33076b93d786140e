"""YAML as YAML 1.2 reads it: ``1e-4`` is a number, ``on`` and ``yes`` are words, a key stands once.

What is read remembers where it was written (see places.py).
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from nanovlm.errors import ConfigError
from nanovlm.places import Place, Written, WrittenList


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def __init__(self, text: str, where: str, place: Place | None) -> None:
        super().__init__(text)
        self.where, self.place = where, place

    def place_of(self, node: yaml.Node) -> Place:
        return self.place or Place(self.where, node.start_mark.line + 1)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # `!!int x`, or a number with thousands of digits
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"this {kind} cannot be read", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value == "<<" and not key.style:
                raise yaml.constructor.ConstructorError(
                    None, None, "YAML 1.2 has no merge key <<: write out what it stands for", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back unchanged: a text that would read as something else is quoted."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True  # what is shared in memory is written out where it stands


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """YAML 1.1's line breaks survive only as escapes, and its merge key only in quotes."""
    style = '"' if value == "<<" or any(character in value for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


Dumper.add_representer(str, _text)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = node.value.lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0) if node.value.startswith(("0o", "0x")) else int(node.value)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Written:
    """Deep: what holds itself by an alias is an error, and not a tree without end."""
    content = loader.construct_mapping(node, deep=True)
    return Written(content, {loader.construct_object(key): loader.place_of(key) for key, _ in node.value})


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> WrittenList:
    return WrittenList(loader.construct_sequence(node, deep=True), map(loader.place_of, node.value))


for _tag, _construct in (("float", _number), ("int", _whole_number), ("map", _mapping), ("seq", _sequence)):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
Dumper.add_representer(Written, yaml.SafeDumper.represent_dict)
Dumper.add_representer(WrittenList, yaml.SafeDumper.represent_list)


def parse_yaml(text: str, where: str, place: Place | None = None) -> Any:
    """The value of a YAML text; a ConfigError names ``where`` and the line.

    Mappings and lists know where their entries were written: by their lines in ``where``, or all of them at ``place``.
    """
    try:
        loader = _Loader(text, where, place)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # PyYAML's context is half of a sentence ("expected a single document") or where it was ("while parsing ...")
        before = f"{error.context} " if (error.context or "").startswith("expected") else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {before}{error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = f", line {text[: error.position].count(chr(10)) + 1}"
        reason = f"the character {chr(error.character)!r} is not allowed"
        raise ConfigError(f"{where}{line}: not valid YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"{where}: too many brackets within brackets") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(missing(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    content = parse_yaml(text, str(file))
    if content is None:
        raise ConfigError(f"{file}: the file is empty; an experiment is a mapping of keys to values")
    if not isinstance(content, Written):
        kind = "list" if isinstance(content, list) else type(content).__name__
        raise ConfigError(f"{file}: an experiment is a mapping of keys to values, not {kind}")
    return content


def missing(file: Path) -> str:
    """That there is no ``file``, where it was looked for, and which one beside it was probably meant."""
    beside = {other.stem: other for other in sorted(file.parent.glob(f"*{file.suffix or '.yaml'}"))}
    close = difflib.get_close_matches(file.stem, beside, n=1)
    hint = f". Did you mean {str(beside[close[0]])!r}?" if close else ""
    return f"{file}: there is no such file (looked in {file.resolve().parent}){hint}"


def dump_yaml(content: dict[str, Any]) -> str:
    """Readable YAML that ``read_yaml`` gives back as it was."""
    text: str = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
