"""A script that prints the names of a TensorRT binding as JSON, loaded over empty libraries.

{class: {name: docstring}}; "" holds the names of the module.
"""

from __future__ import annotations

import importlib
import json
import sys


def main(module_name: str) -> None:
    module = importlib.import_module(module_name)
    names: dict[str, dict[str, str]] = {"": dict.fromkeys(dir(module), "")}
    for name, value in vars(module).items():
        if isinstance(value, type):
            names[name] = {attribute: str(getattr(value, attribute, "").__doc__) for attribute in dir(value)}
    print(json.dumps(names))


if __name__ == "__main__":
    main(sys.argv[1])
