"""Which Lux layer a torch module becomes: known classes by their converters, others read by ``torch.fx``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pynode.errors import InputError, UnsupportedError, explain
from pynode.julia.lux_layers import LuxLayer
from pynode.julia.lux_trace import traced


class Conversion:
    """A conversion at one module of a model: ``convert(child, name)`` is the layer of its submodule.

    Attributes
    ----------
    path : str
        Where the module is in the model.
    """

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module = module
        self.path = path

    def __call__(self, child: nn.Module, name: str) -> LuxLayer:
        return layer_of(child, f"{self.path}.{name}" if self.path else name)

    def refuse(self, why: str) -> UnsupportedError:
        """The error to raise for a module that has no Lux layer because it ``why``."""
        cls = type(self.module)
        return UnsupportedError(
            explain(
                f"{cls.__module__}.{cls.__qualname__} at {self.path or 'the top of the model'} {why}",
                "linear and convolutional layers, activations, and sequences of them",
                "teach its class to pynode with pynode.julia.register_lux, or solve with backend='julia', "
                "which takes any field",
            )
        )


#: What makes a module's layer; it gets the module and the means to convert its submodules.
Converter = Callable[[Any, Conversion], LuxLayer]

_CONVERTERS: dict[type[nn.Module], Converter] = {}


def register_lux(module_class: type[nn.Module], converter: Converter) -> None:
    """Teach :func:`pynode.julia.to_lux` a class of modules.

    Parameters
    ----------
    module_class : type
        Its subclasses are meant too, unless they bring a ``forward`` of their own.
    converter : callable
        ``converter(module, convert) -> LuxLayer``, where ``convert(submodule, name)`` is the layer of a submodule and
        ``convert.refuse(why)`` an error to raise.
        :class:`LuxLayer`, ``chain``, ``elementwise``, ``concat_time`` and ``augment`` of ``pynode.julia.lux_layers``
        are the parts.

    Raises
    ------
    InputError
        If ``module_class`` is not a class of modules.

    Examples
    --------
    >>> class Sine(torch.nn.Module):
    ...     def forward(self, y):
    ...         return torch.sin(y)
    >>> register_lux(Sine, lambda module, convert: elementwise("sin"))
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise InputError(
            explain(f"module_class is {module_class!r}", "a subclass of torch.nn.Module", "pass the class")
        )
    _CONVERTERS[module_class] = converter


def converter_of(module: nn.Module) -> Converter | None:
    """The converter of the module's class, or of the class whose ``forward`` it has; None if there is none."""
    for cls in type(module).__mro__:
        if cls in _CONVERTERS:
            same = type(module).forward is cls.forward and "forward" not in vars(module)
            return _CONVERTERS[cls] if same else None
    return None


def layer_of(module: nn.Module, path: str = "") -> LuxLayer:
    """The Lux layer of a module, its submodules included.

    Raises
    ------
    UnsupportedError
        Naming the class and path of the first module that has none.
    """
    conversion = Conversion(module, path)
    if module._forward_hooks or module._forward_pre_hooks:
        raise conversion.refuse("has hooks, which Lux would not call")
    converter = converter_of(module)
    if converter is not None:
        return converter(module, conversion)
    if type(module).__module__.startswith("torch.nn."):
        raise conversion.refuse("has no counterpart in Lux")
    return traced(module, conversion, converter_of)
