"""A stand-in for a TensorRT module: it has exactly the names of a binding and records their use.

The names come from tensorrt_surface.py. Objects know their class: a method returns what its pybind11
signature says. A name that the binding lacks, or a number of values that no signature takes, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

Surface = Mapping[str, Mapping[str, str]]
_SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((?P<arguments>.*)\) -> (?P<result>\S+)", re.MULTILINE)


def signatures(doc: str) -> list[tuple[int, int, str]]:
    """(fewest values, most values, result type) of each pybind11 signature in a docstring, without `self`."""
    parsed = []
    for match in _SIGNATURE.finditer(doc):
        arguments, depth, argument = [], 0, ""
        for character in match["arguments"] + ",":
            depth += (character in "([{<") - (character in ")]}>")
            if character == "," and depth == 0:
                arguments.append(argument.strip())
                argument = ""
            else:
                argument += character
        arguments = [a for a in arguments if a and not a.startswith("self") and a != "*"]
        if arguments != ["*args", "**kwargs"]:
            required = sum("=" not in a for a in arguments)
            parsed.append((required, len(arguments), re.split(r"[.:]", match["result"])[-1]))
    return parsed


class Member(int):
    """A member of an enumeration."""

    label: str

    def __str__(self) -> str:
        return self.label


class _Class(type):
    """A class of the binding; subclasses made by the code under test are ordinary classes."""

    module: RecordingTensorRT
    owner: str

    def __getattr__(cls, name: str) -> Any:
        return cls.module.member(cls.owner, name)

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        if "owner" in cls.__dict__:
            cls.module.check_call(cls.owner, "__init__", len(arguments) + len(named))
            return cls.module.instance(cls.owner, "", ())
        return super().__call__(*arguments, **named)


class RecordingTensorRT(ModuleType):
    """values: results by (class, name), for properties and where a signature does not say enough.

    A callable receives the object and the arguments.
    """

    def __init__(self, name: str, surface: Surface, values: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(name)
        self.surface, self.values = surface, values
        self.used: set[tuple[str, str]] = set()
        self._classes: dict[str, Any] = {}
        self._members: dict[tuple[str, str], Member] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.record("", name)
        if name not in self._classes:
            body = {"module": self, "owner": name, "__getattr__": _get, "__setattr__": _set}
            self._classes[name] = _Class(name, (), body)
        return self._classes[name]

    def record(self, owner: str, name: str) -> None:
        assert name in self.surface.get(owner, {}), f"{self.__name__}: {owner or 'the module'} has no {name}"
        self.used.add((owner, name))

    def check_call(self, owner: str, name: str, count: int) -> str:
        """The result type of a call with `count` values."""
        known = signatures(self.surface[owner].get(name, ""))
        fitting = [result for fewest, most, result in known if fewest <= count <= most]
        assert fitting or not known, f"{self.__name__}: {owner}.{name} takes {known}, not {count} values"
        return fitting[0] if fitting else ""

    def member(self, owner: str, name: str) -> Any:
        """An attribute of a class: a member of an enumeration, unless `values` has it."""
        self.record(owner, name)
        if (owner, name) in self.values:
            return self.values[owner, name]
        if (owner, name) not in self._members:
            member = self._members[owner, name] = Member(len(self._members))
            member.label = f"{owner}.{name}"
        return self._members[owner, name]

    def instance(self, owner: str, origin: str, arguments: tuple[Any, ...]) -> Any:
        """An object of class `owner`, made by method `origin` with these arguments."""
        made = object.__new__(getattr(self, owner))
        made.__dict__.update(origin=origin, arguments=arguments)
        return made

    def attribute(self, made: Any, owner: str, name: str) -> Any:
        """An attribute of an object: a method if its docstring has a signature, else a property."""
        self.record(owner, name)
        value = self.values.get((owner, name))
        if not signatures(self.surface[owner][name]):
            assert (owner, name) in self.values, f"{owner}.{name}: give this property a value"
            return value(made) if callable(value) else value

        def method(*arguments: Any, **named: Any) -> Any:
            result = self.check_call(owner, name, len(arguments) + len(named))
            if (owner, name) in self.values:
                return value(made, *arguments, **named) if callable(value) else value
            simple = {"None": None, "bool": True}
            return simple[result] if result in simple else self.instance(result, name, arguments)

        return method


def _get(made: Any, name: str) -> Any:
    kind = type(made)
    if name.startswith("__") or "owner" not in kind.__dict__:
        raise AttributeError(name)
    return kind.module.attribute(made, kind.owner, name)


def _set(made: Any, name: str, value: Any) -> None:
    kind = type(made)
    if "owner" in kind.__dict__:
        kind.module.record(kind.owner, name)
    made.__dict__[name] = value
