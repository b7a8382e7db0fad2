"""Attention as the products and roundings it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lowprec_plugin.activations.emulation.sites import Site, format_of, mark, rounded, rounded_function
from lowprec_plugin.compat.overrides import outside_overrides

#: What is added to a score and is no larger hides it, in float32 as in any format: it is no number of the network.
HIDES = -1e4


def attention(
    product: Callable[..., Any],
    next_site: Callable[[str], Site],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """``torch.nn.functional.scaled_dot_product_attention``, each of its steps rounded once, and its weights.

    The scores (scaled, with what is added to them), the softmax, what dropout leaves of it (the weights), and the
    result. Masks are not rounded: a large negative number would take the other scores' bits in a dynamic format, and
    saturate to one that shows what it hides in a static one.

    Args:
        product: a sum of products that is not rounded yet.
        next_site: of the operation of this name.
    """
    if enable_gqa:
        key, value = (_moved(x, x.repeat_interleave(query.size(-3) // x.size(-3), -3)) for x in (key, value))
    site = next_site("attention scores")
    scores = product(torch.matmul, "matmul", (query, _moved(key, key.transpose(-2, -1))), {}, site)
    scores = scores * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores, attn_mask = scores.masked_fill(~attn_mask, -math.inf), None
    if attn_mask is not None:
        scores = scores + attn_mask.masked_fill(attn_mask <= HIDES, 0.0)
    scores = rounded(scores, site, query.dtype)
    if attn_mask is not None:
        scores = torch.where(attn_mask <= HIDES, attn_mask, scores)
    weights = rounded_function(scores, "masked softmax", -1, next_site("attention weights"))
    if dropout_p > 0.0:
        weights = rounded(functional.dropout(weights, dropout_p), next_site("attention dropout"))
    site = next_site("attention")
    return rounded(product(torch.matmul, "matmul", (weights, value), {}, site), site, query.dtype), weights


def _moved(x: Tensor, result: Tensor) -> Tensor:
    """``result``, the numbers of ``x`` in other places, which are not rounded again."""
    return mark(result, format_of(x))


def multi_head_attention(
    attend: Callable[..., tuple[Tensor, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward`` in terms of functions that are rounded one by one.

    Args:
        attend: :func:`attention`, of queries and what follows them.

    Raises:
        ValueError: for the options that nobody needs with emulation yet.
    """
    refused = {
        "bias_k and bias_v (add_bias_kv)": bias_k is not None,
        "add_zero_attn": add_zero_attn,
        "static_k and static_v": static_k is not None or static_v is not None,
    }
    for option, used in refused.items():
        if used:
            raise ValueError(f"emulation does not cover {option} of multi-head attention: leave it out")
    batched = query.dim() == 3
    if not batched:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    if use_separate_proj_weight:
        weights: list[Any] = [q_proj_weight, k_proj_weight, v_proj_weight]
    else:
        assert in_proj_weight is not None
        weights = list(in_proj_weight.chunk(3))
    biases: Sequence[Tensor | None] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    length, batch, width = query.shape
    q, k, v = (
        functional.linear(x, weight, bias)
        .reshape(x.size(0), batch * num_heads, width // num_heads)
        .transpose(0, 1)
        .reshape(batch, num_heads, x.size(0), width // num_heads)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    mask = _mask(attn_mask, key_padding_mask, batch, num_heads, query)
    dropped = dropout_p if training else 0.0
    with outside_overrides():  # it rounds by itself
        out, attended = attend(q, k, v, mask, dropped, is_causal and mask is None)
    out = out.permute(2, 0, 1, 3).reshape(length, batch, width)
    out = functional.linear(out, out_proj_weight, out_proj_bias)
    shown = None
    if need_weights:
        shown = attended.mean(1) if average_attn_weights else attended
        shown = shown if batched else shown.squeeze(0)
    return (out if batched else out.squeeze(1)), shown


def _mask(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, batch: int, heads: int, like: Tensor
) -> Tensor | None:
    """Both masks as one that is added to the scores."""
    mask = None
    if attn_mask is not None:
        mask = _additive(attn_mask, like)
        mask = mask if mask.dim() == 2 else mask.reshape(batch, heads, *mask.shape[-2:])
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, like).reshape(batch, 1, 1, -1)
        mask = padding if mask is None else mask + padding
    return mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -math.inf)
