"""How a state (a tensor, or a tree of them) lies in one flat real vector, and back.

The solvers see one real 1-D tensor. Complex leaves are stored as (real, imaginary) pairs, so that every solver and
every adjoint works on complex states without knowing it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain

#: Whether a ``torch.func`` transform is being applied.
active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)

Tree = Any
"""A tensor, or tuples, lists, named tuples and dictionaries of trees."""


def leaves_of(tree: Tree, path: str = "y0") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)``, dictionaries in their own order."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            yield from leaves_of(branch, f"{path}[{key!r}]")
    elif isinstance(tree, tuple | list):
        for index, branch in enumerate(tree):
            yield from leaves_of(branch, f"{path}[{index}]")
    else:
        yield path, tree


def rebuild(template: Tree, leaves: Iterator[Any]) -> Tree:
    """A tree shaped like ``template`` with the given leaves."""
    if isinstance(template, dict):
        pairs = [(key, rebuild(branch, leaves)) for key, branch in template.items()]
        if type(template) is dict:
            return dict(pairs)
        rebuilt = copy.copy(template)  # keeps what a subclass carries beside its items (defaultdict's factory)
        rebuilt.update(pairs)
        return rebuilt
    if isinstance(template, tuple | list):
        branches = [rebuild(branch, leaves) for branch in template]
        if hasattr(template, "_fields"):
            return type(template)(*branches)
        return type(template)(branches)
    return next(leaves)


def _branches(template: Tree, tree: Tree, path: str, source: str = "f") -> Iterator[Any]:
    """Leaves of ``tree``, which ``source`` returned, in the order of ``template``; tuple and list are
    interchangeable."""
    if isinstance(template, dict):
        if not isinstance(tree, dict) or tree.keys() != template.keys():
            came = f"a {type(tree).__name__}" + (f" with keys {list(tree)}" if isinstance(tree, dict) else "")
            raise FieldError(
                explain(
                    f"{source} returned {came} at {path}",
                    f"a dictionary with keys {list(template)}",
                    "return the tree of " + ("y" if source == "f" else "the first value"),
                )
            )
        for key, branch in template.items():
            yield from _branches(branch, tree[key], f"{path}[{key!r}]", source)
    elif isinstance(template, tuple | list):
        if not isinstance(tree, tuple | list) or len(tree) != len(template):
            came = f"a {type(tree).__name__}" + (f" of length {len(tree)}" if isinstance(tree, tuple | list) else "")
            raise FieldError(
                explain(
                    f"{source} returned {came} at {path}",
                    f"a sequence of length {len(template)}",
                    "return the tree of " + ("y" if source == "f" else "the first value"),
                )
            )
        for index, branch in enumerate(template):
            yield from _branches(branch, tree[index], f"{path}[{index}]", source)
    else:
        yield tree


class Layout:
    """The correspondence of a tree of tensors and a flat real vector.

    Parameters
    ----------
    tree : tensor or tree of tensors
        Leaves of any shape, all of one real precision (float32 with complex64, float64 with complex128) and device.
    source, target : str
        What returns derivatives, and what they have to look like, for messages.

    Attributes
    ----------
    dtype : torch.dtype
        Real dtype of the flat vector.
    size : int
        Its length.
    """

    def __init__(self, tree: Tree, source: str = "f", target: str = "y") -> None:
        self._source, self._target = source, target
        self._root = "y" if source == "f" else source
        found = list(leaves_of(tree, "y0" if source == "f" else source))
        if not found:
            raise InputError(explain(f"y0 = {tree!r} holds no tensor", "at least one tensor", "give the initial state"))
        for path, leaf in found:
            _check_state(path, leaf)
        leaves = [leaf for _, leaf in found]
        self.paths = [path for path, _ in found]
        self.shapes = [leaf.shape for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.device = leaves[0].device
        self.dtype = leaves[0].dtype.to_real()
        for path, leaf in found[1:]:
            if leaf.device != self.device or leaf.dtype.to_real() != self.dtype:
                raise InputError(
                    explain(
                        f"{path} is {leaf.dtype} on {leaf.device} but {self.paths[0]} is {leaves[0].dtype} "
                        f"on {self.device}",
                        "one device and one precision for the whole state",
                        "convert the leaves with .to()",
                    )
                )
        self.sizes = [leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in leaves]
        self.size = sum(self.sizes)
        if self.size == 0:
            raise InputError(explain("y0 has no element", "at least one element", "give a non-empty state"))
        self.is_tensor = isinstance(tree, Tensor)
        self.is_real = not any(dtype.is_complex for dtype in self.dtypes)
        self._like = leaves[0].detach() if self.is_tensor and self.is_real else None
        offsets = [sum(self.sizes[:i]) for i in range(len(leaves))]
        pairs = [offset for offset, dtype in zip(offsets, self.dtypes, strict=True) if dtype.is_complex]
        #: Whether complex leaves lie on pairs, in every row of a matrix of these vectors too. Where they do not, they
        #: can be no views: what is pulled back through one, or through the gradient of one, must lie on pairs itself.
        self._aligned = self.is_real or not any(offset % 2 for offset in (*pairs, self.size))
        self.template: Tree = rebuild(tree, iter(range(len(leaves))))
        #: ``tuple`` or ``list`` where the state is one of real tensors and nothing deeper: what is quick to take apart.
        self._sequence = type(tree) if type(tree) in (tuple, list) and self.is_real and _shallow(tree) else None

    def pack(self, tree: Tree) -> Tensor:
        """The flat vector of a tree of this layout (differentiable; a view where possible)."""
        if self._like is not None:
            return tree.reshape(-1)  # type: ignore[no-any-return]
        flat = [self._real(leaf).reshape(-1) for leaf in _branches(self.template, tree, "y")]
        return flat[0] if len(flat) == 1 else torch.cat(flat)

    def _real(self, leaf: Tensor) -> Tensor:
        if not leaf.is_complex():
            return leaf
        if self._aligned:
            return torch.view_as_real(leaf.resolve_conj())
        return torch.stack((leaf.real, leaf.imag), dim=-1)

    def unpack(self, flat: Tensor) -> Tree:
        """The tree of views into ``flat``, whose leading dimensions are kept (differentiable)."""
        lead = flat.shape[:-1]
        if self._like is not None and not lead:
            return flat.view_as(self._like)  # much cheaper than view(shape)
        if self.is_tensor:
            return _shaped(flat, lead, self.shapes[0], self.dtypes[0], self._aligned)
        parts = flat.split_with_sizes(self.sizes, dim=-1)
        if self._sequence is not None and not lead:
            return self._sequence([part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)])
        forms = zip(parts, self.shapes, self.dtypes, strict=True)
        leaves = [_shaped(part, lead, shape, dtype, self._aligned) for part, shape, dtype in forms]
        return rebuild(self.template, iter(leaves))

    def pack_derivative(self, derivative: Tree) -> Tensor:
        """Flat vector of what the field returned, after checking that it has the state's form.

        Raises
        ------
        FieldError
            If it is not a tree of tensors of the state's shapes, dtypes and device.
        """
        if self.is_tensor and self.is_real:
            self.check_leaf(0, derivative)
            flat: Tensor = derivative.reshape(-1)
            return flat
        if self._sequence is not None:
            self._check_sequence(derivative)
            return torch.cat([leaf.reshape(-1) for leaf in derivative])
        flats = []
        for index, leaf in enumerate(_branches(self.template, derivative, self._root, self._source)):
            self.check_leaf(index, leaf)
            flats.append(self._real(leaf).reshape(-1))
        return flats[0] if len(flats) == 1 else torch.cat(flats)

    def _check_sequence(self, derivative: Tree) -> None:
        """What :meth:`pack_derivative` checks, quicker where nothing is wrong."""
        if not isinstance(derivative, tuple | list) or len(derivative) != len(self.shapes):
            list(_branches(self.template, derivative, self._root, self._source))  # says what is wrong
        dtype, device = self.dtype, self.device
        for index, (leaf, shape) in enumerate(zip(derivative, self.shapes, strict=True)):
            plain = type(leaf) is Tensor and leaf.layout is torch.strided
            if not plain or leaf.shape != shape or leaf.dtype is not dtype or leaf.device != device:
                self.check_leaf(index, leaf)

    def check_like(self, tree: Tree, source: str) -> Tree:
        """``tree``, which ``source`` returned in place of a state, in the containers of the state.

        Raises
        ------
        FieldError
            If it is not a tree of tensors of the state's shapes, dtypes and device.
        """
        own = copy.copy(self)
        own._source = source
        leaves = list(_branches(self.template, tree, "y", source))
        for index, leaf in enumerate(leaves):
            own.check_leaf(index, leaf)
        return rebuild(self.template, iter(leaves))

    def writer(self) -> Callable[[Tree, Any], None]:
        """A function that checks a derivative and copies it into a row of a buffer, one of :meth:`row_views`."""
        if self.is_tensor and self.is_real:
            shape, dtype, device, strided = self.shapes[0], self.dtypes[0], self.device, torch.strided

            def write(derivative: Tree, row: Tensor) -> None:
                # The comparisons stand here, not behind a call, because this runs at every evaluation.
                if (
                    type(derivative) is not Tensor
                    or derivative.shape != shape
                    or derivative.dtype is not dtype
                    or derivative.device != device
                    or derivative.layout is not strided
                ):
                    self.check_leaf(0, derivative)
                row.copy_(derivative)

            return write

        if self._sequence is not None and type(self).pack_derivative is Layout.pack_derivative:

            def write_leaves(derivative: Tree, row: Any) -> None:
                self._check_sequence(derivative)
                torch._foreach_copy_(row, derivative)

            return write_leaves

        def write_tree(derivative: Tree, row: Tensor) -> None:
            row.copy_(self.pack_derivative(derivative))

        return write_tree

    def row_views(self, buffer: Tensor) -> tuple[Any, ...]:
        """Views of the rows of a buffer (m, n) that :meth:`writer`'s function fills, each in one or in its leaves."""
        if self._like is not None:
            buffer = buffer.view(-1, *self.shapes[0])
        elif self._sequence is not None and type(self).pack_derivative is Layout.pack_derivative:
            return tuple(tuple(self.unpack(row)) for row in buffer.unbind())
        return buffer.unbind()

    def released(self) -> Layout:
        """The same layout, without the state it was made from."""
        own = copy.copy(self)
        own._like = None
        return own

    def check_leaf(self, index: int, leaf: Any) -> None:
        """Raise FieldError unless ``leaf`` can be the derivative of leaf ``index`` of the state."""
        shape, dtype = self.shapes[index], self.dtypes[index]
        where = "" if self.is_tensor else f" for {self.paths[index].replace('y0', 'y', 1)}"
        if not isinstance(leaf, Tensor):
            remedy = "add the return statement" if leaf is None else "return a tensor"
            raise FieldError(
                explain(
                    f"{self._source} returned {type(leaf).__name__}{where}", f"a tensor like {self._target}", remedy
                )
            )
        if leaf.shape != shape:
            raise FieldError(
                explain(
                    f"{self._source} returned shape {tuple(leaf.shape)}{where}",
                    f"the shape of {self._target}, {tuple(shape)}",
                    f"return one {'derivative' if self._source == 'f' else 'value'} per element of the state",
                )
            )
        if leaf.dtype != dtype:
            raise FieldError(
                explain(
                    f"{self._source} returned dtype {leaf.dtype}{where}",
                    f"the dtype of {self._target}, {dtype}",
                    "convert the model or the initial state with .to(dtype); t has the real dtype of y already",
                )
            )
        if leaf.layout is not torch.strided:
            raise FieldError(
                explain(
                    f"{self._source} returned a tensor of layout {leaf.layout}{where}",
                    "a dense tensor",
                    "return it with .to_dense()",
                )
            )
        if leaf.device != self.device:
            raise FieldError(
                explain(
                    f"{self._source} returned a tensor on {leaf.device}{where}",
                    f"device {self.device}, that of {self._target}",
                    "move the model",
                )
            )


def _shallow(tree: Tree) -> bool:
    return all(isinstance(leaf, Tensor) for leaf in tree)


def layout_of(tree: Tree) -> Layout:
    """The layout of a state; that of a plain tensor is made once for every shape, dtype and device.

    Raises
    ------
    InputError
        As :class:`Layout`.
    """
    plain = type(tree) in (Tensor, torch.nn.Parameter) and tree.layout is torch.strided and not tree.is_nested
    # A tensor made inside a transform or a mode belongs to that.
    if not plain or active() or torch._C._len_torch_dispatch_stack():
        return Layout(tree)
    return _layout_of_tensor(tree.shape, tree.dtype, tree.device)


@functools.lru_cache(maxsize=256)
def _layout_of_tensor(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Layout:
    with torch.inference_mode(False):  # for solves outside that mode, too
        return Layout(torch.empty((), dtype=dtype, device=device).expand(shape))


def _check_state(path: str, leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise InputError(
            explain(
                f"{path} is a {type(leaf).__name__}",
                "a tensor, or a tuple, list or dictionary of tensors",
                "wrap numbers and arrays in torch.as_tensor(...)",
            )
        )
    if leaf.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise InputError(
            explain(
                f"{path} has dtype {leaf.dtype}",
                "float32, float64, complex64 or complex128",
                f"use {path}.float() or .double(); solve in one of these even under autocast",
            )
        )


def _shaped(flat: Tensor, lead: torch.Size, shape: torch.Size, dtype: torch.dtype, aligned: bool) -> Tensor:
    if dtype.is_complex:
        pairs = flat.reshape(*lead, *shape, 2)
        if not aligned or pairs.storage_offset() % 2 or any(stride % 2 for stride in pairs.stride()[:-1]):
            return torch.complex(pairs[..., 0], pairs[..., 1])
        return torch.view_as_complex(pairs)
    return flat.reshape(lead + shape) if lead else flat.view(shape)
