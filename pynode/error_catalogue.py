"""Every way a solve can end and every exception, as the README lists them: ``python -m pynode.error_catalogue``."""

from __future__ import annotations

import inspect

from pynode import errors
from pynode.solution import ADVICE, ReturnCode


def error_catalogue() -> str:
    """Two tables in Markdown: of :class:`pynode.ReturnCode` with the advice of its message, and of the exceptions."""
    return f"{_endings()}\n\n{_exceptions()}\n"


def _endings() -> str:
    rows = ["| `sol.retcode` | the solve ended because | what to do |", "| --- | --- | --- |"]
    for code in ReturnCode:
        remedy = "nothing: it succeeded" if code.successful else ADVICE[code][1]
        rows.append(f"| `{code.name}` | {code.value} | {remedy} |")
    return "\n".join(rows)


def _exceptions() -> str:
    rows = ["| exception | is also | raised where |", "| --- | --- | --- |"]
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, Exception) and cls.__module__ == errors.__name__:
            bases = ", ".join(f"`{base.__name__}`" for base in cls.__bases__)
            summary = (inspect.getdoc(cls) or "").partition("\n")[0].rstrip(".")
            rows.append(f"| `{cls.__name__}` | {bases} | {summary[0].lower()}{summary[1:]} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(error_catalogue(), end="")
