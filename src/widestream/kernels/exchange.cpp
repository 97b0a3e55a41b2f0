// One exchange of a matrix stream in one pass over the state, on a CPU. exchange.py says what is computed;
// exchange_cpu.py compiles, loads and calls this file.
//
// A token's state, V rows of K numbers, stays in the nearest cache while everything that concerns it happens. All
// products are one routine, which takes single numbers of its left factor (broadcast) and vectors of its right one, so
// data vectors may lie either way round. Where a result is wanted transposed (heads), the tile is transposed first.
//
// Tokens are cut into chunks whose number depends on N alone. Every chunk sums its own gradients of keys and gain, and
// the sums are added in order: results do not depend on the number of threads.
//
// Letters: N tokens, V value axis, K key axis, R data vectors written, Q read; Kp, Vp, Rp, Qp are rounded up to whole
// vectors of W numbers. Rows of a tile are Kp apart and its padding is zero unless a comment says otherwise.

#include "threads.h"
#include "tiles.h"

#include <cmath>

constexpr int64_t FLUSH = 256;               // vectors summed in float before the sum moves on to double
constexpr int64_t SAMPLES = 32;              // vectors that the mean is guessed from
constexpr int64_t CHUNK = 32, CHUNKS = 128;  // tokens of a chunk at least; chunks at most

// Mirrored in exchange_cpu.py.
struct Problem {
    int64_t N, V, K, R, Q;  // R is 0 where nothing is written
    int64_t state_bf16, grad_bf16, normed, layernorm;  // normed: 0 none; layernorm: 1 subtracts the mean
    int64_t gain_rows, backward, threads;              // gain_rows: 0 no gain, 1 for all, V each
    double eps;
    const void* source;  // the state before the write, `state` itself if it is changed in place
    void* state;
    const void* grad_after;  // likewise `grad_state`; if it lies apart, nothing is undone
    void* grad_state;
    const float *write_keys, *read_keys, *gain;     // [K, R], [Q, K], [gain_rows, K]
    float *grad_write, *grad_read, *grad_gain;      // the same shapes
    View data, out, grad_data;                      // out is its gradient in the backward pass
    Parallel parallel;
};

// ---- what a call prepares and a thread keeps

// A call: the problem, its keys and gain padded, and where its chunks leave their sums.
struct Call : Problem {
    int64_t Kp, Vp, Rp, Qp, tile, chunks, sums;  // tile: floats of [V, Kp]; sums: floats of one chunk's sums
    float *write, *write_out, *read, *read_out;  // [R, Kp] and [K, Rp], [Q, Kp] and [K, Qp]
    float *gains, *cells, *partial;  // [V, Kp]; [V, Kp], 0 in the padding, else 1; per chunk dw, dr, dgain, rows of Kp
    std::atomic<int64_t> next;

    explicit Call(const Problem& problem) : Problem(problem), next(0) {
        Kp = padded(K), Vp = padded(V), Rp = padded(R), Qp = padded(Q), tile = V * Kp;
        chunks = N / CHUNK < 1 ? 1 : N / CHUNK > CHUNKS ? CHUNKS : N / CHUNK;
        sums = (R + Q) * Kp + (gain_rows ? tile : 0);
    }
    int64_t fixed() const { return (R + Q) * Kp + K * (Rp + Qp) + 2 * tile; }
    int64_t vectors() const { return Vp * (Rp > Qp ? Rp : Qp); }  // a token's data vectors, either way round
    int64_t start(int64_t chunk) const { return N * chunk / chunks; }

    void prepare(float* memory) {
        memset(memory, 0, fixed() * 4);
        write = memory, read = write + R * Kp, write_out = read + Q * Kp, read_out = write_out + K * Rp;
        gains = read_out + K * Qp, cells = gains + tile, partial = cells + tile;
        for (int64_t k = 0; k < K; k++) {
            for (int64_t r = 0; r < R; r++) write[r * Kp + k] = write_out[k * Rp + r] = write_keys[k * R + r];
            for (int64_t q = 0; q < Q; q++) read[q * Kp + k] = read_out[k * Qp + q] = read_keys[q * K + k];
            for (int64_t v = 0; v < V; v++) {
                gains[v * Kp + k] = gain_rows ? gain[(gain_rows == 1 ? 0 : v) * K + k] : 1.0f;
                cells[v * Kp + k] = 1;
            }
        }
    }
};

// A thread's tiles.
struct Scratch {
    float *state, *grad, *normed, *flipped, *reach, *data, *out;
    Scratch(Room& room, const Call& c) {
        state = room.floats(4 * c.tile + c.Kp * c.Vp + 2 * c.vectors());
        grad = state + c.tile, normed = grad + c.tile, reach = normed + c.tile, flipped = reach + c.tile;
        data = flipped + c.Kp * c.Vp, out = data + c.vectors();
    }
};

// ---- one token

// The token's tile: the memory that it goes back to where that is one, else a padded copy.
static float* fetch_tile(const Call& c, bool bf16, const void* from, void* to, int64_t token, float* buffer) {
    if (!bf16 && c.K == c.Kp) {
        float* own = (float*)to + token * c.tile;
        if (from != to) memcpy(own, (const float*)from + token * c.tile, c.tile * 4);
        return own;
    }
    for (int64_t v = 0; v < c.V; v++) {
        const int64_t at = (token * c.V + v) * c.K;
        float* row = buffer + v * c.Kp;
        if (bf16)
            widen_row((const uint16_t*)from + at, row, c.K);
        else
            memcpy(row, (const float*)from + at, c.K * 4);
        for (int64_t k = c.K; k < c.Kp; k++) row[k] = 0;
    }
    return buffer;
}

// Back into memory; a bfloat16 tile becomes what was stored.
static void put_tile(const Call& c, bool bf16, void* to, int64_t token, float* tile) {
    if (!bf16 && c.K == c.Kp) return;
    for (int64_t v = 0; v < c.V; v++) {
        const int64_t at = (token * c.V + v) * c.K;
        float* row = tile + v * c.Kp;
        if (bf16) {
            put_row(row, (uint16_t*)to + at, c.K);
            widen_row((uint16_t*)to + at, row, c.K);
        } else {
            memcpy((float*)to + at, row, c.K * 4);
        }
    }
}

static inline double across(Vec x) {
    double sum = 0;
    for (int lane = 0; lane < W; lane++) sum += x[lane];
    return sum;
}

struct Sums {
    double first, second;
};

// Sums of what f(i, a, b) adds to a and b for every vector i of a tile, in float within a stretch, in double over them.
template <class F>
static inline Sums totals(int64_t count, F f) {
    Sums sums = {0, 0};
    for (int64_t begin = 0; begin < count; begin += FLUSH) {
        const int64_t end = count - begin < FLUSH ? count : begin + FLUSH;
        Vec a[4] = {}, b[4] = {};  // several of each, so that additions need not wait for one another
        int64_t i = begin;
        for (; i + 4 <= end; i += 4)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) f(i + j, a[j], b[j]);
        for (; i < end; i++) f(i, a[0], b[0]);
        sums.first += across((a[0] + a[1]) + (a[2] + a[3])), sums.second += across((b[0] + b[1]) + (b[2] + b[3]));
    }
    return sums;
}

struct Moments {
    float mean, rate;  // rate: one over the standard deviation or root mean square
};

// The mean of SAMPLES vectors from all over a tile: a few numbers far from all others, wherever they are, hardly move it.
static float near_the_mean(const Call& c, const float* tile) {
    const int64_t vectors = c.tile / W, step = vectors < SAMPLES ? 1 : vectors / SAMPLES;
    Vec sum = {}, count = {};
    for (int64_t i = 0; i < vectors; i += step) sum += load(tile + i * W), count += load(c.cells + i * W);
    return (float)(across(sum) / across(count));
}

// From sums of distances from a number near the mean, so that squares do not cancel.
static Moments moments(const Call& c, const float* tile) {
    if (!c.normed) return {0.0f, 1.0f};
    const double cells = (double)(c.V * c.K);
    const float shift = c.layernorm ? near_the_mean(c, tile) : 0.0f;
    const Sums sums = totals(c.tile / W, [&](int64_t i, Vec& sum, Vec& squares) {
        Vec away = load(tile + i * W) - shift;
        if (c.K != c.Kp) away *= load(c.cells + i * W);
        sum += away, squares += away * away;
    });
    const double away = c.layernorm ? sums.first / cells : 0;
    return {(float)(shift + away), (float)(1 / std::sqrt(sums.second / cells - away * away + c.eps))};
}

// Begin to ask for the tiles of a token, which is worked on after the one at hand.
static void look_ahead(const Call& c, int64_t token) {
    const int64_t numbers = token < c.N ? c.V * c.K : 0, bytes = numbers * (c.state_bf16 ? 2 : 4);
    const int64_t grad_bytes = numbers * (c.grad_bf16 ? 2 : 4);
    ahead.set(0, (const char*)(c.backward ? c.state : c.source) + token * bytes, bytes);
    if (c.backward) ahead.set(1, (const char*)c.grad_after + token * grad_bytes, grad_bytes);
}

// What is normed, gain included.
static inline Vec normed(const Call& c, Moments own, int64_t i, Vec x) {
    return (x - own.mean) * own.rate * load(c.gains + i);
}

static void normalise(const Call& c, const float* tile, Moments own, float* to) {
    for (int64_t i = 0; i < c.tile; i += W) store(to + i, normed(c, own, i, load(tile + i)));
}

// Contract with keys over K what lies in s.flipped, by columns, and put the token's result where the view wants it.
static void contract_flipped(const Call& c, const float* keys, int64_t P, const View& view, int64_t token,
                             const Scratch& s) {
    float* own = (float*)view.data + token * view.token;
    if (!view.bf16 && c.V == c.Vp)
        return multiply(P, c.K, c.Vp, {keys, c.Kp, false}, s.flipped, c.Vp, own, view.column, SET);
    multiply(P, c.K, c.Vp, {keys, c.Kp, false}, s.flipped, c.Vp, s.out, c.Vp, SET);
    put(view, token, c.V, P, s.out, c.Vp);
}

// The same for a tile as it is.
static void contract(const Call& c, const float* tile, const float* keys_out, int64_t P, const View& view,
                     int64_t token, const Scratch& s) {
    const int64_t Pp = padded(P);
    multiply(c.V, c.K, Pp, {tile, c.Kp, false}, keys_out, Pp, s.out, Pp, SET);
    put(view, token, c.V, P, s.out, Pp);
}

// Ask for a tile's memory, all of it at once, before it is needed.
static void summon(const Call& c, const float* tile) {
    for (int64_t i = 0; i < c.tile; i += 16) __builtin_prefetch(tile + i, 1, 3);
}

static void forward_token(const Call& c, int64_t token, const Scratch& s) {
    float* X = fetch_tile(c, c.state_bf16, c.source, c.state, token, s.state);
    summon(c, X);
    if (c.R) multiply(c.V, c.R, c.Kp, fetch(c.data, token, c.V, c.R, s.data), c.write, c.Kp, X, c.Kp, ADD);
    if (c.R || c.source != c.state) put_tile(c, c.state_bf16, c.state, token, X);
    const Moments own = moments(c, X);
    if (by_columns(c.out)) {
        transpose(X, c.V, c.Kp, s.flipped, [&](int64_t i, Vec x) { return normed(c, own, i, x); });
        contract_flipped(c, c.read, c.Q, c.out, token, s);
    } else {
        normalise(c, X, own, s.normed);
        contract(c, s.normed, c.read_out, c.Q, c.out, token, s);
    }
}

static void backward_token(const Call& c, int64_t token, const Scratch& s, float* dw, float* dr, float* dgain) {
    const int64_t vectors = c.tile / W;
    float* X = fetch_tile(c, c.state_bf16, c.state, c.state, token, s.state);
    float* dX = fetch_tile(c, c.grad_bf16, c.grad_after, c.grad_state, token, s.grad);
    summon(c, dX);
    const Moments own = moments(c, X);
    normalise(c, X, own, s.normed);
    const Matrix dY = fetch(c.out, token, c.V, c.Q, s.data);
    float* G = s.reach;  // gradient of what is read from, then of what is normed
    multiply(c.V, c.Q, c.Kp, dY, c.read, c.Kp, G, c.Kp, SET);
    multiply(c.Q, c.V, c.Kp, dY.flipped(), s.normed, c.Kp, dr, c.Kp, ADD);
    const auto without_gain = [&](int64_t i) { return (load(X + i * W) - own.mean) * own.rate; };
    const bool gain = c.gain_rows > 0;
    const Sums sums = totals(vectors, [&](int64_t i, Vec& sum, Vec& along) {
        const Vec x = without_gain(i);
        Vec g = load(G + i * W);
        if (gain) {
            store(dgain + i * W, load(dgain + i * W) + g * x);
            store(G + i * W, g = g * load(c.gains + i * W));
        }
        sum += g, along += g * x;
    });
    const double cells = (double)(c.V * c.K);
    const float mean = c.layernorm ? (float)(sums.first / cells) : 0, along = c.normed ? (float)(sums.second / cells) : 0;
    for (int64_t i = 0; i < vectors; i++)  // leaves anything in the padding, which nobody reads
        store(dX + i * W, load(dX + i * W) + (load(G + i * W) - mean - without_gain(i) * along) * own.rate);
    put_tile(c, c.grad_bf16, c.grad_state, token, dX);
    if (!c.R) return;
    if (by_columns(c.grad_data)) {
        transpose(dX, c.V, c.Kp, s.flipped);
        contract_flipped(c, c.write, c.R, c.grad_data, token, s);
    } else {
        contract(c, dX, c.write_out, c.R, c.grad_data, token, s);
    }
    const Matrix A = fetch(c.data, token, c.V, c.R, s.data);
    multiply(c.R, c.V, c.Kp, A.flipped(), dX, c.Kp, dw, c.Kp, ADD);
    if (c.grad_after != c.grad_state) return;
    multiply(c.V, c.R, c.Kp, A, c.write, c.Kp, X, c.Kp, SUBTRACT);
    put_tile(c, c.state_bf16, c.state, token, X);
}

// ---- all tokens

// Take chunks until there are none left.
static void work(void* argument) {
    static thread_local Room room;
    Call& c = *(Call*)argument;
    const Scratch scratch(room, c);
    for (int64_t chunk; (chunk = c.next.fetch_add(1)) < c.chunks;) {
        float *dw = c.partial + chunk * c.sums, *dr = dw + c.R * c.Kp, *dgain = dr + c.Q * c.Kp;
        if (c.backward) memset(dw, 0, c.sums * 4);
        for (int64_t token = c.start(chunk); token < c.start(chunk + 1); token++) {
            look_ahead(c, token + 1);
            if (c.backward)
                backward_token(c, token, scratch, dw, dr, dgain);
            else
                forward_token(c, token, scratch);
        }
    }
}

// Add the chunks' sums in order and hand them out in the shapes of keys and gain.
static void reduce(const Call& c) {
    float* sum = c.partial;
    for (int64_t chunk = 1; chunk < c.chunks; chunk++) {
        const float* other = c.partial + chunk * c.sums;
        for (int64_t i = 0; i < c.sums; i++) sum[i] += other[i];
    }
    const float *dr = sum + c.R * c.Kp, *dgain = dr + c.Q * c.Kp;
    for (int64_t k = 0; k < c.K; k++)
        for (int64_t r = 0; r < c.R; r++) c.grad_write[k * c.R + r] = sum[r * c.Kp + k];
    for (int64_t q = 0; q < c.Q; q++) memcpy(c.grad_read + q * c.K, dr + q * c.Kp, c.K * 4);
    for (int64_t v = 0; v < (c.gain_rows ? c.V : 0); v++)
        for (int64_t k = 0; k < c.K; k++) {
            float& own = c.grad_gain[(c.gain_rows == 1 ? 0 : v) * c.K + k];
            own = (c.gain_rows == 1 && v ? own : 0.0f) + dgain[v * c.Kp + k];
        }
}

// The exchange or its backward pass.
extern "C" void widestream_exchange(const Problem* problem) {
    static thread_local Room room;
    Call call(*problem);
    call.prepare(room.floats(call.fixed() + (call.backward ? call.chunks * call.sums : 0)));
    if (call.threads > 1 && call.chunks > 1)  // all threads: the pool would be built anew for another number
        call.parallel(work, &call, (unsigned)call.threads, 0);
    else
        work(&call);
    if (call.backward) reduce(call);
}
