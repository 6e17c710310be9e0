"""Run by itself: prints what a TensorRT binding offers, as JSON. The libraries under it are stubs that answer nothing.

{class: {name: its docstring}}, and under "" the names of the module.
"""

from __future__ import annotations

import importlib
import json
import sys


def main(module_name: str) -> None:
    module = importlib.import_module(module_name)
    found: dict[str, dict[str, str]] = {"": dict.fromkeys(dir(module), "")}
    for name, value in vars(module).items():
        if isinstance(value, type):
            found[name] = {attribute: str(getattr(value, attribute, "").__doc__) for attribute in dir(value)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
