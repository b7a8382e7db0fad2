"""What the functions of torch do to numbers of a format, by name."""

from __future__ import annotations

from lowprec_plugin.compat.overrides import FAST_PATHS

#: They select, move or compare numbers and make no new ones: what goes in rounded comes out rounded. (The opposite of
#: two's complement's smallest number is a new one.)
EXACT = frozenset(
    """
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d alias all amax amin any argmax argmin
    argsort as_strided atleast_1d atleast_2d atleast_3d backward broadcast_tensors broadcast_to bucketize cat
    channel_shuffle chunk clone concat concatenate contiguous copy cpu cuda data_ptr detach detach_ diag diag_embed
    diagonal dim dsplit element_size empty_like eq expand expand_as flatten flip fliplr flipud float
    fractional_max_pool2d gather ge gt hsplit hstack index index_select isfinite isinf isnan is_contiguous
    is_floating_point item kthvalue le lt masked_fill masked_fill_ masked_scatter masked_select max max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool1d
    max_unpool2d max_unpool3d maximum median meshgrid min minimum moveaxis movedim narrow ndimension ne
    new_empty new_zeros nonzero numel numpy one_hot pad permute pixel_shuffle
    pixel_unshuffle positive ravel register_hook relu relu_ repeat repeat_interleave requires_grad_ reshape reshape_as
    resolve_conj resolve_neg retain_grad roll rot90 scatter searchsorted select set_ shape size sort split
    split_with_sizes squeeze squeeze_ stack storage_offset stride swapaxes swapdims t tensor_split tile to
    tolist topk transpose transpose_ tril triu type type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze
    unsqueeze_ untyped_storage view view_as vsplit vstack where zeros_like
    __bool__ __contains__ __eq__ __float__ __format__ __ge__ __get__ __getitem__ __gt__ __hash__ __index__ __int__
    __iter__ __le__ __len__ __lt__ __ne__ __repr__ __reversed__ __set__ __str__
    """.split()  # noqa: SIM905
)

#: Of these, those whose whole numbers are filled in.
FILLING = frozenset(("masked_fill", "masked_fill_", "where"))
#: Those whose fourth argument is filled in; the whole numbers before it are sizes and dimensions.
FILLING_FOURTH = frozenset(("pad", "scatter"))

#: Sums of products: the position of the first factor, of the second, and of a bias among the arguments, with the names.
PRODUCTS = {
    **dict.fromkeys(("linear",), ((0, "input"), (1, "weight"), (2, "bias"))),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ((0, "input"), (1, "weight"), (2, "bias")),
    ),
    **dict.fromkeys(("matmul", "__matmul__"), ((0, "input"), (1, "other"))),
    **dict.fromkeys(("mm", "bmm"), ((0, "input"), (1, "mat2"))),
}

#: As these, but summed in float32 only: their terms cannot be counted from the shapes alone, or they scale the sum.
OTHER_PRODUCTS = frozenset(
    """
    addbmm addbmm_ addmm addmm_ addmv addmv_ addr addr_ baddbmm baddbmm_ bilinear cdist chain_matmul conv_tbc dot einsum
    ger inner kron linalg_matmul linalg_multi_dot linalg_vecdot mv outer tensordot vdot __rmatmul__
    """.split()  # noqa: SIM905
)

#: Their derivative is one of their result.
FROM_OUTPUT = frozenset(("sigmoid", "softmax", "tanh"))

#: Fused operations whose inner results nobody sees, and so nobody rounds; and what to write instead.
REFUSED = {
    **dict.fromkeys(
        ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
        "write the cell out with linear, sigmoid and tanh",
    ),
    **dict.fromkeys(
        FAST_PATHS,
        "call torch.backends.mha.set_fastpath_enabled(False)",
    ),
    **dict.fromkeys(("quantize_per_tensor", "fake_quantize_per_tensor_affine"), "emulation rounds by itself"),
}
