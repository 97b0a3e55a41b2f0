"""The exchange of `exchange.py` as Triton kernels, launched by `exchange_triton`.

A program takes tokens p, p + P, p + 2 P, ... of P programs, one at a time, and holds that token's tile [V, K] of the
state in registers: it is read once, written once, and everything else of an exchange happens in between. Keys and gain
are loaded before the first token. Sums over tokens stay in registers until the last one; a program then stores its own,
and torch adds up those of all programs in a fixed order. There are no atomics, so a gradient is the same every time.

A tile that does not fit registers is cut along K into BLOCKS. Then statistics need the whole tile before any part of it
can be read: forward, one program goes over the blocks twice; backward, `statistics_kernel` goes first and every program
of `backward_kernel` owns one block.

Letters: N tokens, V, K axes of the state, R data vectors written, Q read. BV, BK, BR, BQ are those sizes (K: of a
block) padded to powers of two of at least 16, as `tl.dot` needs; pads are loaded as zeros and never stored.
"""

import triton
import triton.language as tl


@triton.jit
def _load(base, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile [rows, columns], zero outside of [ROWS, COLUMNS]."""
    at = base + rows[:, None] * row_stride + columns[None, :] * column_stride
    if rows.shape[0] == ROWS and columns.shape[0] == COLUMNS:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(rows[:, None] < ROWS) & (columns[None, :] < COLUMNS), other=0.0)
    return tile


@triton.jit
def _store(base, tile, rows, columns, row_stride, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store what of a tile lies inside of [ROWS, COLUMNS], in the target's precision."""
    at = base + rows[:, None] * row_stride + columns[None, :] * column_stride
    tile = tile.to(base.dtype.element_ty)
    if rows.shape[0] == ROWS and columns.shape[0] == COLUMNS:
        tl.store(at, tile)
    else:
        tl.store(at, tile, mask=(rows[:, None] < ROWS) & (columns[None, :] < COLUMNS))


@triton.jit
def _load_gain(gain, v, k, V: tl.constexpr, K: tl.constexpr, GAIN: tl.constexpr):
    """Gain of a tile: [BV, BK], [1, BK], or one where there is none."""
    if GAIN == "full":
        tile = _load(gain, v, k, K, 1, V, K).to(tl.float32)
    elif GAIN == "row":
        tile = tl.load(gain + k[None, :], mask=k[None, :] < K, other=0.0).to(tl.float32)
    else:
        tile = tl.full([1, 1], 1.0, tl.float32)
    return tile


@triton.jit
def _nearest_bf16(x):
    """Round to the nearest bfloat16, as a GPU does it; the interpreter's own conversion cuts off instead."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _dot(a, b, DOT: tl.constexpr):
    """A product with float32 sums.

    DOT "bf16" rounds its operands; "rounded" does the same for Triton's interpreter, which would multiply the bits of
    bfloat16 numbers; anything else is `tl.dot`'s `input_precision` for float32 operands.
    """
    if DOT == "bf16":
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif DOT == "rounded":
        product = tl.dot(_nearest_bf16(a), _nearest_bf16(b), input_precision="ieee")
    else:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=DOT)
    return product


@triton.jit
def _sum(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)


@triton.jit
def _both(a, b, c, d):
    return a + c, b + d


@triton.jit
def _sums(a, b):
    """Sums of two tiles; threads meet once for both."""
    return tl.reduce((tl.sum(a, axis=1), tl.sum(b, axis=1)), 0, _both)


@triton.jit
def _operand(a, DOT: tl.constexpr):
    """Rounded before it is transposed, where a product rounds."""
    return a.to(tl.bfloat16) if DOT == "bf16" else a


@triton.jit
def _spread(x, BV: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr):
    """A tile as it is, its cells spread over threads as those of a product.

    The compiler chooses by what a tile meets first. Met by a product of zeros, it is not also kept as it was loaded,
    for which there are no registers.
    """
    if DOT == "bf16":
        x -= tl.dot(tl.zeros([BV, 16], tl.bfloat16), tl.zeros([16, BK], tl.bfloat16))
    return x


@triton.jit
def _away(x, shift, v, k, V: tl.constexpr, K: tl.constexpr):
    """Distance from `shift`, zero in the pads."""
    away = x - shift
    if v.shape[0] != V or k.shape[0] != K:
        away = tl.where((v[:, None] < V) & (k[None, :] < K), away, 0.0)
    return away


@triton.jit
def _rate(total, square, eps, CELLS: tl.constexpr, NORM: tl.constexpr):
    """One over the standard deviation (root mean square), from sums of distances from a shift near the mean."""
    variance = square / CELLS
    if NORM == "layernorm":
        variance -= (total / CELLS) * (total / CELLS)
    return variance * 0.0 + 1.0 if NORM == "none" else tl.rsqrt(variance + eps)


@triton.jit(do_not_specialize=["tokens"])  # else compiled again for another batch
def forward_kernel(
    source, state, data, write_keys, read_keys, gain, out, tokens, eps,
    data_n, data_v: tl.constexpr, data_r: tl.constexpr, out_n, out_v: tl.constexpr, out_q: tl.constexpr,
    V: tl.constexpr, K: tl.constexpr, R: tl.constexpr, Q: tl.constexpr,
    BV: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BQ: tl.constexpr,
    BLOCKS: tl.constexpr, WRITES: tl.constexpr, STORES: tl.constexpr,
    GAIN: tl.constexpr, NORM: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Write, statistics, gain and read. STORES: the state differs from its source. Grid: (P,)."""
    v, r, q = tl.arange(0, BV), tl.arange(0, BR), tl.arange(0, BQ)
    if BLOCKS == 1:
        k = tl.arange(0, BK)
        if WRITES:
            store_at = _load(write_keys, k, r, R, 1, K, R)
        gains = _load_gain(gain, v, k, V, K, GAIN)
        retrieve_at = _load(read_keys, q, k, K, 1, Q, K)
    for step in range(tl.program_id(0), tokens, tl.num_programs(0)):
        n = tl.cast(step, tl.int64)
        own = state + n * (V * K)
        if WRITES:
            written = _load(data + n * data_n, v, r, data_v, data_r, V, R)
        shift, total, square = 0.0, 0.0, 0.0
        for block in tl.static_range(BLOCKS):  # pyright: ignore[reportGeneralTypeIssues]
            k = block * BK + tl.arange(0, BK)
            x = _load(source + n * (V * K), v, k, K, 1, V, K).to(tl.float32)
            if WRITES:
                if BLOCKS > 1:
                    store_at = _load(write_keys, k, r, R, 1, K, R)
                x += _dot(written, tl.trans(store_at), DOT)
                x = x.to(state.dtype.element_ty).to(tl.float32)  # what later exchanges will find
            if STORES:
                _store(own, x, v, k, K, 1, V, K)
            if NORM == "layernorm" and block == 0:
                shift = _sum(x) / (V * K if BLOCKS == 1 else V * BK)  # near the mean: squares below do not cancel
            away = _away(x, shift, v, k, V, K)
            of_away, of_square = _sums(away, away * away)
            total, square = total + of_away, square + of_square
        rate = _rate(total, square, eps, V * K, NORM)
        mean = shift + total / (V * K) if NORM == "layernorm" else 0.0
        if BLOCKS > 1:
            tl.debug_barrier()  # another thread may have stored what is loaded again now
        read = tl.zeros([BV, BQ], tl.float32)
        for block in tl.static_range(BLOCKS):
            if BLOCKS > 1:
                k = block * BK + tl.arange(0, BK)
                x = _load(own, v, k, K, 1, V, K).to(tl.float32)
                gains = _load_gain(gain, v, k, V, K, GAIN)
                retrieve_at = _load(read_keys, q, k, K, 1, Q, K)
            read += _dot((x - mean) * rate * gains, tl.trans(retrieve_at), DOT)
        _store(out + n * out_n, read, v, q, out_v, out_q, V, Q)


@triton.jit(do_not_specialize=["tokens"])  # else compiled again for another batch
def statistics_kernel(
    state, read_keys, gain, grad_out, statistics, tokens, eps,
    grad_n, grad_v: tl.constexpr, grad_q: tl.constexpr,
    V: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
    BV: tl.constexpr, BK: tl.constexpr, BQ: tl.constexpr,
    BLOCKS: tl.constexpr, GAIN: tl.constexpr, NORM: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """What `backward_kernel` must know of whole tiles, [N, 4]: see `_project`. Grid: (P,)."""
    v, q = tl.arange(0, BV), tl.arange(0, BQ)
    for step in range(tl.program_id(0), tokens, tl.num_programs(0)):
        n = tl.cast(step, tl.int64)
        grad_read = _load(grad_out + n * grad_n, v, q, grad_v, grad_q, V, Q)
        shift, total, square, slope, product = 0.0, 0.0, 0.0, 0.0, 0.0
        for block in tl.static_range(BLOCKS):
            k = block * BK + tl.arange(0, BK)
            x = _load(state + n * (V * K), v, k, K, 1, V, K).to(tl.float32)
            if NORM == "layernorm" and block == 0:
                shift = _sum(x) / (V * K if BLOCKS == 1 else V * BK)
            away = _away(x, shift, v, k, V, K)
            grad = _dot(grad_read, _load(read_keys, q, k, K, 1, Q, K), DOT) * _load_gain(gain, v, k, V, K, GAIN)
            of_away, of_square = _sums(away, away * away)
            of_grad, of_product = _sums(grad, grad * away)
            total, square = total + of_away, square + of_square
            slope, product = slope + of_grad, product + of_product
        mean, rate, slope, along = _project(shift, total, square, slope, product, eps, V * K, NORM)
        tl.store(statistics + n * 4 + 0, mean)
        tl.store(statistics + n * 4 + 1, rate)
        tl.store(statistics + n * 4 + 2, slope)
        tl.store(statistics + n * 4 + 3, along)


@triton.jit
def _project(shift, total, square, slope, product, eps, CELLS: tl.constexpr, NORM: tl.constexpr):
    """From sums over a tile: mean, rate, and the means of g and of g * normed, g the gradient of the normed tile.

    The gradient of the tile is (g - mean g - normed * mean(g * normed)) * rate, without `mean g` for RMSNorm, and g
    alone without a norm.
    """
    rate = _rate(total, square, eps, CELLS, NORM)
    if NORM == "layernorm":
        mean = shift + total / CELLS
        along = (product - slope * (total / CELLS)) / CELLS * rate
        slope = slope / CELLS
    else:
        mean = total * 0.0
        along = product / CELLS * rate
        slope = slope * 0.0
    if NORM == "none":
        along = along * 0.0
    return mean, rate, slope, along


@triton.jit(do_not_specialize=["tokens"])  # else compiled again for another batch
def backward_kernel(
    state, grad_after, grad_state, data, write_keys, read_keys, gain, grad_out, grad_data, statistics,
    sums, tokens, eps,
    data_n, data_v: tl.constexpr, data_r: tl.constexpr, grad_n, grad_v: tl.constexpr, grad_q: tl.constexpr,
    block_d, grad_data_n, grad_data_v: tl.constexpr, grad_data_r: tl.constexpr,
    V: tl.constexpr, K: tl.constexpr, R: tl.constexpr, Q: tl.constexpr,
    BV: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, BQ: tl.constexpr,
    BLOCKS: tl.constexpr, WRITES: tl.constexpr, UNDOES: tl.constexpr, SUMS: tl.constexpr,
    GAIN: tl.constexpr, NORM: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """All gradients and, if it UNDOES the write, the state before. Grid: (P, BLOCKS).

    `statistics` [N, 4] is used if there is more than one block. `grad_data` is strided [N, V, R], a block's part of it
    `block_d` further on. A row of `sums` [P, SUMS] gets the sums over a program's tokens: of the gradients of retrieval
    keys [Q, K], then, where there are any, of storage keys [K, R] and gain [V, K] or [K].
    """
    program = tl.program_id(0)
    block = tl.program_id(1)
    v, r, q = tl.arange(0, BV), tl.arange(0, BR), tl.arange(0, BQ)
    k = block * BK + tl.arange(0, BK)
    if WRITES:
        store_at = _load(write_keys, k, r, R, 1, K, R)
        own_write = tl.zeros([BK, BR], tl.float32)
    gains = _load_gain(gain, v, k, V, K, GAIN)
    retrieve_at = _load(read_keys, q, k, K, 1, Q, K)
    own_read = tl.zeros([BQ, BK], tl.float32)
    if GAIN == "full":
        own_gain = tl.zeros([BV, BK], tl.float32)
    if GAIN == "row":
        own_gain = tl.zeros([BK], tl.float32)
    for step in range(program, tokens, tl.num_programs(0)):
        n = tl.cast(step, tl.int64)
        at = n * (V * K)
        x = _load(state + at, v, k, K, 1, V, K).to(tl.float32)
        grad_read = _load(grad_out + n * grad_n, v, q, grad_v, grad_q, V, Q)
        if WRITES:
            written = _load(data + n * data_n, v, r, data_v, data_r, V, R)
        x = _spread(x, BV, BK, DOT)
        if UNDOES:
            _store(state + at, x - _dot(written, tl.trans(store_at), DOT), v, k, K, 1, V, K)
        grad = _load(grad_after + at, v, k, K, 1, V, K)
        if BLOCKS == 1:
            mean = _sum(x) / (V * K) if NORM == "layernorm" else 0.0
            away = _away(x, mean, v, k, V, K)
            rate = 1.0 if NORM == "none" else tl.rsqrt(_sum(away * away) / (V * K) + eps)
            normed = away * rate
        else:
            mean = tl.load(statistics + n * 4 + 0)
            rate = tl.load(statistics + n * 4 + 1)
            normed = (x - mean) * rate
        own_read += _dot(tl.trans(grad_read), normed * gains, DOT)
        grad_gained = _dot(grad_read, retrieve_at, DOT)
        if GAIN == "full":
            own_gain += grad_gained * normed
        if GAIN == "row":
            own_gain += tl.sum(grad_gained * normed, axis=0)
        grad_normed = grad_gained * gains
        grad = grad + grad_normed * rate  # float32 from here on: widened at its load, it would lie in two layouts
        if BLOCKS == 1:
            slope, along = _sums(grad_normed, grad_normed * normed)
            slope = slope / (V * K) if NORM == "layernorm" else 0.0
            along = along / (V * K) if NORM != "none" else 0.0
        else:
            slope = tl.load(statistics + n * 4 + 2)
            along = tl.load(statistics + n * 4 + 3)
        grad -= normed * (along * rate) + slope * rate
        _store(grad_state + at, grad, v, k, K, 1, V, K)
        if WRITES:
            grad_written = _dot(grad, store_at, DOT)
            _store(grad_data + block * block_d + n * grad_data_n, grad_written, v, r, grad_data_v, grad_data_r, V, R)
            own_write += _dot(tl.trans(_operand(grad, DOT)), written, DOT)
    own = sums + program * SUMS
    _store(own, own_read, q, k, K, 1, Q, K)
    own += Q * K
    if WRITES:
        _store(own, own_write, k, r, R, 1, K, R)
        own += K * R
    if GAIN == "full":
        _store(own, own_gain, v, k, K, 1, V, K)
    if GAIN == "row":
        tl.store(own + k, own_gain, mask=k < K)
