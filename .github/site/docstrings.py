"""An extension of Griffe, which reads the docstrings for the site."""

from typing import Any

import griffe
from names import docstring


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = docstring(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        # The docstrings say in words what an argument may be. The annotations are unions of many types.
        for parameter in func.parameters:
            parameter.annotation = None
