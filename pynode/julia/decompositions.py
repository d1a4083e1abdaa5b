"""Which operators are taken apart before anything is emitted."""

from __future__ import annotations

from typing import Any

import torch
from torch._decomp import core_aten_decompositions, get_decompositions

aten = torch.ops.aten

#: Not core operators in torch's sense, or core ones whose parts the emitter has anyway.
_MORE = (
    aten.native_layer_norm,
    aten.native_layer_norm_backward,
    aten.native_group_norm,
    aten.native_group_norm_backward,
    aten._native_batch_norm_legit_no_training,
    aten.native_batch_norm,
    aten.native_batch_norm_backward,
    aten.cudnn_batch_norm,
    aten._softmax,
    aten._log_softmax,
    aten._softmax_backward_data,
    aten._log_softmax_backward_data,
    aten.addmm,
    aten.addmv,
    aten.baddbmm,
    aten.addbmm,
    aten.gelu,
    aten.gelu_backward,
    aten.hardtanh,
    aten.leaky_relu,
    aten.elu,
    aten.elu_backward,
    aten.mv,
    aten.dot,
    aten.var,
    aten.var_mean,
    aten.std,
    aten.logsumexp,
    aten.embedding,
    aten.embedding_dense_backward,
    aten.index_select,
    aten.stack,
    aten.split_with_sizes,
    aten.split,
    aten.unbind,
    aten.lerp,
    aten.cumprod,
    aten.norm,
    aten.linalg_vector_norm,
    aten.select_backward,
    aten.slice_backward,
    aten.index_add,
    aten.index_copy,
    aten._cdist_forward,
    aten._cdist_backward,
)


#: Taken apart by torch into more than they are: the emitter writes into part of an array, or computes them at once.
_KEPT = (
    aten.slice_scatter,
    aten.select_scatter,
    aten.diagonal_scatter,
    aten.constant_pad_nd,
    aten.sigmoid,
    aten.expm1,
    aten.log1p,
    aten.rsqrt,
    aten.convolution_backward,
)


def _table() -> dict[Any, Any]:
    table: dict[Any, Any] = dict(core_aten_decompositions())
    table.update(get_decompositions(_MORE))
    for packet in _KEPT:
        for name in packet.overloads():
            table.pop(getattr(packet, name), None)
    return table


TABLE = _table()
