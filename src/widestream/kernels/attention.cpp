// The backward pass of attention, out = softmax(scale q k^T + bias) v, on a CPU. attention_cpu.py says what it is for;
// it compiles, loads and calls this file.
//
// A head is one thread's, from its first token to its last: results do not depend on the number of threads. BLOCK keys
// are taken at a time, and against them BLOCK queries at a time, so that a tile of logits never leaves the nearest
// caches. Its probabilities are computed anew from the logarithm of their sum, which the forward pass has left. A tile
// without a pair that may see each other is passed over. All sums are in float.
//
// Letters: B batch, H heads, T tokens, D width of a head; Dp is D rounded up to whole vectors.

#include "threads.h"
#include "tiles.h"

#include <cmath>

constexpr int64_t BLOCK = 64;

// [B, H, T, D] in memory; neighbours along D lie side by side.
struct Heads {
    void* data;
    int64_t batch, head, token;  // strides
    int64_t bf16;                // bfloat16 instead of float
};

// Mirrored in attention_cpu.py.
struct Problem {
    int64_t B, H, T, D, causal, threads;
    double scale;
    Heads q, k, v, out, grad_out, grad_q, grad_k, grad_v;
    const float* log_sums;  // [B, H, T]: of the exponentials of a query's logits
    const float* bias;      // added to the logits, [B, H, T, T] by the strides below; null where there is none
    int64_t bias_batch, bias_head, bias_query;
    Parallel parallel;
};

// A call: the problem, and the next head that no thread has taken.
struct Call : Problem {
    int64_t Dp;
    std::atomic<int64_t> next;
    explicit Call(const Problem& problem) : Problem(problem), Dp(padded(D)), next(0) {}
};

// What a thread works with. Of a whole head, rows of Dp: queries times scale, the output's gradient, the queries'
// gradient, and per query sum(grad_out * out). Of a block of keys: keys and values as rows and as columns, and their
// gradients. Of a pair of blocks: probabilities and their gradient, rows of BLOCK.
struct Scratch {
    float *q, *grad_out, *grad_q, *along, *k, *v, *k_columns, *v_columns, *grad_k, *grad_v, *chances, *slopes;
    Scratch(Room& room, const Call& c) {
        const int64_t head = c.T * c.Dp, keys = BLOCK * c.Dp;
        q = room.floats(3 * head + padded(c.T) + 6 * keys + 2 * BLOCK * BLOCK);
        grad_out = q + head, grad_q = grad_out + head, along = grad_q + head;
        k = along + padded(c.T), v = k + keys, k_columns = v + keys, v_columns = k_columns + keys;
        grad_k = v_columns + keys, grad_v = grad_k + keys, chances = grad_v + keys, slopes = chances + BLOCK * BLOCK;
    }
};

// Where the first of a head's tokens is in memory, and whether numbers there are bfloat16.
struct Place {
    char* at;
    int64_t stride;  // bytes from token to token
    bool bf16;
    Place(const Heads& x, int64_t b, int64_t h) : bf16(x.bf16) {
        const int64_t bytes = x.bf16 ? 2 : 4;
        at = (char*)x.data + (b * x.batch + h * x.head) * bytes, stride = x.token * bytes;
    }
};

// Tokens of a head as rows of floats, zero in the padding.
static void take(const Call& c, const Place& from, int64_t first, int64_t count, float* to) {
    for (int64_t t = 0; t < count; t++, to += c.Dp) {
        const char* row = from.at + (first + t) * from.stride;
        if (from.bf16)
            widen_row((const uint16_t*)row, to, c.D);
        else
            memcpy(to, row, c.D * 4);
        for (int64_t d = c.D; d < c.Dp; d++) to[d] = 0;
    }
}

static void give(const Call& c, const float* from, const Place& to, int64_t first, int64_t count) {
    for (int64_t t = 0; t < count; t++, from += c.Dp) {
        char* row = to.at + (first + t) * to.stride;
        if (to.bf16)
            put_row(from, (uint16_t*)row, c.D);
        else
            memcpy(row, from, c.D * 4);
    }
}

static void scale(float* numbers, int64_t count, float by) {
    for (int64_t i = 0; i < count; i += W) store(numbers + i, load(numbers + i) * by);
}

// How many of a block's keys a query may see, by order alone.
static inline int64_t visible(const Call& c, int64_t query, int64_t first, int64_t keys) {
    const int64_t earlier = query - first + 1;
    return c.causal && earlier < keys ? (earlier < 0 ? 0 : earlier) : keys;
}

// The row of the bias that belongs to a query.
static const float* bias_of(const Call& c, int64_t b, int64_t h, int64_t query) {
    return c.bias + b * c.bias_batch + h * c.bias_head + query * c.bias_query;
}

// Whether the bias allows any pair of a tile.
static bool any_pair(const Call& c, int64_t b, int64_t h, int64_t i, int64_t queries, int64_t j, int64_t keys) {
    if (!c.bias) return true;
    for (int64_t t = i; t < i + queries; t++) {
        const float* row = bias_of(c, b, h, t) + j;
        for (int64_t key = 0; key < keys; key++)
            if (row[key] > -INFINITY) return true;
    }
    return false;
}

// A row of logits becomes probabilities; zero from the n-th key on.
static void to_chances(float* row, int64_t width, int64_t n, const float* bias, float log_sum) {
    for (int64_t j = 0; j < width; j += W) {
        if (j >= n) {
            store(row + j, Vec{});
            continue;
        }
        Vec logits = load(row + j);
        if (bias) {
            Vec added = {};
            memcpy(&added, bias + j, (n - j < W ? n - j : W) * 4);
            logits += added;
        }
        Vec chances = exponential(logits - log_sum);
        if (n - j < W)
            for (int lane = (int)(n - j); lane < W; lane++) chances[lane] = 0;
        store(row + j, chances);
    }
}

// One block of queries against one of keys.
static void pair(const Call& c, const Scratch& s, int64_t b, int64_t h, int64_t i, int64_t queries, int64_t j,
                 int64_t keys) {
    const int64_t width = padded(keys);
    const float *q = s.q + i * c.Dp, *grad_out = s.grad_out + i * c.Dp;
    multiply(queries, c.D, width, {q, c.Dp, false}, s.k_columns, width, s.chances, BLOCK, SET);
    multiply(queries, c.D, width, {grad_out, c.Dp, false}, s.v_columns, width, s.slopes, BLOCK, SET);
    for (int64_t t = 0; t < queries; t++) {
        float *chances = s.chances + t * BLOCK, *slopes = s.slopes + t * BLOCK;
        const float* bias = c.bias ? bias_of(c, b, h, i + t) + j : nullptr;
        const float along = s.along[i + t];
        to_chances(chances, width, visible(c, i + t, j, keys), bias, c.log_sums[(b * c.H + h) * c.T + i + t]);
        for (int64_t p = 0; p < width; p += W) store(slopes + p, load(chances + p) * (load(slopes + p) - along));
    }
    multiply(keys, queries, c.Dp, {s.chances, BLOCK, true}, grad_out, c.Dp, s.grad_v, c.Dp, ADD);
    multiply(keys, queries, c.Dp, {s.slopes, BLOCK, true}, q, c.Dp, s.grad_k, c.Dp, ADD);
    multiply(queries, keys, c.Dp, {s.slopes, BLOCK, false}, s.k, c.Dp, s.grad_q + i * c.Dp, c.Dp, ADD);
}

static float across(Vec x) {
    float sum = 0;
    for (int lane = 0; lane < W; lane++) sum += x[lane];
    return sum;
}

// Queries, the output's gradient, and what it has along the output.
static void begin_head(const Call& c, const Scratch& s, int64_t b, int64_t h) {
    take(c, {c.q, b, h}, 0, c.T, s.q);
    scale(s.q, c.T * c.Dp, (float)c.scale);
    take(c, {c.grad_out, b, h}, 0, c.T, s.grad_out);
    memset(s.grad_q, 0, c.T * c.Dp * 4);
    for (int64_t t = 0; t < c.T; t++) {
        take(c, {c.out, b, h}, t, 1, s.k);
        Vec sum = {};
        for (int64_t d = 0; d < c.Dp; d += W) sum += load(s.grad_out + t * c.Dp + d) * load(s.k + d);
        s.along[t] = across(sum);
    }
}

static void one_head(const Call& c, const Scratch& s, int64_t b, int64_t h) {
    begin_head(c, s, b, h);
    for (int64_t j = 0; j < c.T; j += BLOCK) {
        const int64_t keys = c.T - j < BLOCK ? c.T - j : BLOCK;
        take(c, {c.k, b, h}, j, keys, s.k), transpose(s.k, keys, c.Dp, s.k_columns);
        take(c, {c.v, b, h}, j, keys, s.v), transpose(s.v, keys, c.Dp, s.v_columns);
        memset(s.grad_k, 0, keys * c.Dp * 4), memset(s.grad_v, 0, keys * c.Dp * 4);
        for (int64_t i = c.causal ? j : 0; i < c.T; i += BLOCK) {
            const int64_t queries = c.T - i < BLOCK ? c.T - i : BLOCK;
            if (any_pair(c, b, h, i, queries, j, keys)) pair(c, s, b, h, i, queries, j, keys);
        }
        give(c, s.grad_k, {c.grad_k, b, h}, j, keys);
        give(c, s.grad_v, {c.grad_v, b, h}, j, keys);
    }
    scale(s.grad_q, c.T * c.Dp, (float)c.scale);
    give(c, s.grad_q, {c.grad_q, b, h}, 0, c.T);
}

// Take heads until there are none left.
static void work(void* argument) {
    static thread_local Room room;
    Call& c = *(Call*)argument;
    const Scratch scratch(room, c);
    for (int64_t n; (n = c.next.fetch_add(1)) < c.B * c.H;) one_head(c, scratch, n / c.H, n % c.H);
}

extern "C" void widestream_attention(const Problem* problem) {
    Call call(*problem);
    if (call.threads > 1 && call.B * call.H > 1)  // all threads: the pool would be built anew for another number
        call.parallel(work, &call, (unsigned)call.threads, 0);
    else
        work(&call);
}
