# Copyright the blockattn authors. SPDX-License-Identifier: Apache-2.0
"""Block attention for PyTorch, forward and backward, on the CPU and on CUDA.

    mask = BlockMask.blocks([512, 300, 64])      # lengths of the token blocks, the last one is final
    o = block_attention(q, k, v, mask)           # q, k, v: (tokens, heads, head_dim)
    o.sum().backward()

There is no batch dimension: sequences follow one another on the token axis, and do not see each other;
`BlockMask.blocks([[512, 64], [300, 40, 8]])` packs two. A mask is built once for each batch and serves all layers.
"""

import torch
from torch.autograd.function import once_differentiable

import _block_attention as _native

__all__ = ["BlockMask", "block_attention"]


class BlockMask:
    """Who sees whom. Keeps the plans of the kernels: each is made, and sent to a device, when it is first needed."""

    def __init__(self, native):
        self._native = native

    @classmethod
    def causal(cls, tokens):
        """Every token sees itself and all before it."""
        return cls(_native.causal(tokens))

    @classmethod
    def blocks(cls, lengths, *, sink_tokens=0, sink_visibility="own_and_final"):
        """Block attention (arXiv 2409.15355): a token sees its own block up to itself, and in the last block of its
        sequence all tokens before it. `lengths` are those of one sequence's blocks, or a list of such lists.
        `sink_tokens` rows are inserted before each block (see `sources`); `sink_visibility` says which other blocks see
        them: "own" = none, "own_and_final" = the final one, "all" = every later one."""
        return cls(_native.blocks(_sequences(lengths), sink_tokens, sink_visibility))

    @classmethod
    def dropout(cls, lengths, *, keep_probability, seed, rule="hide_pairs", exempt_final_block=False,
                sink_tokens=0, sink_visibility="own_and_final"):
        """A mask drawn by block dropout (arXiv 2605.15913), for one seed the same on every machine. With probability
        1 - keep_probability each, "hide_pairs" hides an earlier block from a later one, "hide_context" a block from the
        final one, "global_blocks" lets a block see all before it, "random_final" lets another block be the final one.
        See `loss_tokens`."""
        return cls(_native.dropout(_sequences(lengths), keep_probability, seed, rule, exempt_final_block,
                                   sink_tokens, sink_visibility))

    @property
    def tokens(self):
        """Rows of q, k and v, those of sink tokens included."""
        return self._native.tokens

    @property
    def sources(self):
        """(tokens) int64: the token, counted without sinks, that each row holds; -1 for a sink token."""
        return self._native.sources

    @property
    def loss_tokens(self):
        """(tokens) bool: rows that may carry loss; None for a mask that block dropout did not draw."""
        return self._native.loss_tokens

    def dense(self):
        """(tokens, tokens) bool, True where the row sees the column: for tests and pictures."""
        return self._native.dense()


def block_attention(q, k, v, mask, *, scale=None, softcap=0.0, sink_logits=None, return_lse=False):
    """softmax(scores) v over the pairs that `mask` shows, with scores = scale * q k^T, or where softcap is not 0
    softcap * tanh(scale * q k^T / softcap).

    q: (tokens, query_heads, head_dim), k: (tokens, kv_heads, head_dim), v: (tokens, kv_heads, value_dim), all of one
    type on one device: bfloat16, float16 or float32 (on CUDA as three products of TF32), on the CPU also float64. Head
    dims are multiples of 8 up to 256, query_heads is a multiple of kv_heads. Any strides are read in place where the last
    dimension is contiguous, anything else is copied. `scale` defaults to head_dim ** -0.5. `sink_logits`,
    (query_heads): one more score in each softmax, which has no value.

    Returns o, (tokens, query_heads, value_dim), or with return_lse (o, lse). lse, (tokens, query_heads), is the natural
    logarithm of the softmax's denominator in float32, float64 for float64 tensors. A row that sees nothing has o = 0
    and lse = -inf. q, k, v and sink_logits get gradients, of o and of lse, once: there are no second derivatives. The
    same inputs give the same bits, on CUDA the gradient of q only after torch.use_deterministic_algorithms(True), with
    which backward takes up to 1.3 times as long. Raises ValueError for what it does not support.

    Under torch.autocast q, k and v are cast to its type, float64 apart, as for torch's own attention.
    """
    device = q.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        q, k, v = _autocast(q, k, v)
    if sink_logits is not None:
        sink_logits = sink_logits.to(torch.float64 if q.dtype == torch.float64 else torch.float32).contiguous()
    o, lse = _BlockAttention.apply(_rows(q), _rows(k), _rows(v), sink_logits, mask, scale, softcap)
    return (o, lse) if return_lse else o


class _BlockAttention(torch.autograd.Function):

    @staticmethod
    def forward(ctx, q, k, v, sink_logits, mask, scale, softcap):
        o, lse = _native.forward(mask._native, q, k, v, sink_logits, scale, softcap)
        ctx.save_for_backward(q, k, v, sink_logits, o, lse)
        ctx.mask, ctx.scale, ctx.softcap = mask, scale, softcap
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, d_o, d_lse):
        *inputs, o, lse = ctx.saved_tensors
        d_o = torch.zeros_like(o) if d_o is None else _rows(d_o)
        if d_lse is not None:
            d_lse = d_lse.contiguous()
        gradients = _native.backward(ctx.mask._native, *inputs, o, lse, d_o, d_lse, ctx.scale, ctx.softcap)
        return *gradients, None, None, None


def _rows(tensor):
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _autocast(*tensors):
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return [t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]


def _sequences(lengths):
    lengths = list(lengths)
    return lengths if lengths and isinstance(lengths[0], (list, tuple)) else [lengths]
