"""What a command's user names as ``MODULE:ATTRIBUTE``."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from pynode.errors import InputError, explain


def user_attribute(name: str, option: str, form: str) -> Any:
    """The object called ``MODULE:ATTRIBUTE``, found from the current folder too.

    Parameters
    ----------
    name : str
    option : str
        Where the user wrote it, for messages.
    form : str
        What the attribute should be, for messages.

    Raises
    ------
    InputError
        Saying what is missing.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(explain(f"{option} {name}", "MODULE:ATTRIBUTE", "name both, such as mymodule:make"))
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            explain(f"cannot import {module_name!r} ({error})", "a Python module", "run in its folder, or install it")
        ) from error
    finally:
        sys.path.remove("")
    if not hasattr(module, attribute):
        raise InputError(
            explain(f"{module_name} has no {attribute!r}", f"an attribute that is {form}", "check its name")
        )
    return getattr(module, attribute)
