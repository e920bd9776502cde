"""Command-line flags derived from the dataclasses of settings.

A setting is declared once, as a documented field of `ExperimentConfig` or of a scheme's
configuration; its flag has the field's name, type and documentation.
"""

import collections
import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Union, cast, get_args, get_type_hints

from absl import flags

from tff_fedmpq.baselines.registry import SCHEMES
from tff_fedmpq.federated.config import allowed_names
from tff_fedmpq.lookup import check_name
from tff_fedmpq.simulation.config import PRESETS, ExperimentConfig


class _SettingParser(flags.ArgumentParser):
    """Parses the text of a flag as the type of a field; "none" stands for None."""

    def __init__(self, annotation: Any):
        super().__init__()
        self._is_optional = type(None) in get_args(annotation)
        self._names = allowed_names(annotation)
        types = [t for t in (annotation, *get_args(annotation)) if t in _PARSERS]
        self._parse: Any = _PARSERS[types[0]] if types else str
        self.syntactic_help = "|".join(self._names)

    def flag_type(self) -> str:
        """Returns the type that `--help` shows."""
        return "name" if self._names else self._parse.__name__.lstrip("_")

    def parse(self, argument: str) -> Any:
        """Returns the value, or `_NONE` for None; raises ValueError for other text."""
        if self._is_optional and argument.lower() == "none":
            return _NONE
        if self._names:
            check_name(argument, dict.fromkeys(self._names), "name")
        return self._parse(argument)


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


def _budgets(text: str) -> tuple[Union[float, str], ...]:
    parts = (part.strip() for part in text.split(",") if part.strip())
    return tuple(part if part.endswith("kB") else float(part) for part in parts)


_NONE = object()  # Stands for None, which is absl's value of a flag not given.
_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: _bool,
    int: int,
    float: float,
    Sequence[Union[float, str]]: _budgets,
}


def define_flags() -> None:
    """Defines a flag for every setting of a run and of all schemes but the data set.

    The flags have no default of their own; `read_flags` returns those that were given.
    """
    for name, (annotation, text) in _settings().items():
        flags.DEFINE(_SettingParser(annotation), name, None, text)


def read_flags() -> dict[str, Any]:
    """Returns the settings that were given on the command line, by name."""
    return {
        flag.name: None if flag.value is _NONE else flag.value
        for flag in (flags.FLAGS[name] for name in _settings())
        if flag.present
    }


def _settings() -> dict[str, tuple[Any, str]]:
    """Returns type and help, by name, of every setting that has a flag."""
    found: dict[str, tuple[Any, str]] = {}
    defaults: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for scheme, make in SCHEMES.items():
        for config in cast(tuple[Any, ...], (ExperimentConfig(), make())):
            annotations = get_type_hints(type(config))
            documented = _documented(type(config))
            for name in (field.name for field in dataclasses.fields(config)):
                if name not in ("scheme", "dataset"):
                    found[name] = annotations[name], documented[name]
                    defaults[name][scheme] = getattr(config, name)
    return {
        name: (annotation, f"{text} {_defaults(name, defaults[name])}")
        for name, (annotation, text) in found.items()
    }


def _defaults(name: str, values: Mapping[str, Any]) -> str:
    """Returns a sentence on a setting's default in each scheme and preset."""
    ours = {k: v for k, v in values.items() if not k.endswith("_literal")} or values
    if len(set(map(repr, ours.values()))) == 1:
        parts = [str(next(iter(ours.values())))]
    else:
        parts = [f"{value} ({scheme})" for scheme, value in ours.items()]
    if len(values) < len(SCHEMES):
        parts.append(f"only in {', '.join(values)}")
    for preset, settings in PRESETS.items():
        parts += [
            f"{changed[name]} ({' on '.join(filter(None, [preset, dataset]))})"
            for dataset, changed in settings.items()
            if name in changed
        ]
    # In lower case, as a user types "true" and "none".
    return f"Default: {', '.join(parts).lower()}."


def _documented(config: type) -> dict[str, str]:
    """Returns the "Attributes:" sections of a class and its bases, by name."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        # Python 3.13 takes the indentation out of docstrings.
        text = inspect.cleandoc(cls.__doc__ or "")
        section = text.partition("Attributes:\n")[2].partition("\n\n")[0]
        entries = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.M)
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found
