// RMSNorm of rows and rotation of heads on a CPU, in one pass, and the gradients. norm_cpu.py compiles, loads and calls
// this file.
//
//     y = x s g,  s = 1 / sqrt(mean(x^2) + eps)              then pairs (y_i, y_{i + d / 2}) turn by their token's angle
//     dg = sum over rows of u x s                            u: the output's gradient, turned back
//     dx = s (u g - x s mean(u g x s))
//
// Rows without a norm turn only; rows without angles are normed only. A row is read twice, while it is in the nearest
// cache. Sums over rows are formed part by part, and the parts do not depend on the number of threads.

#include <cmath>

#include "threads.h"
#include "tiles.h"

constexpr int64_t FEW = 1 << 14;  // numbers that are not worth a second thread

// Rows in memory: row h of token t begins at t * token + h * head, and its numbers lie side by side.
struct Rows {
    void* data;
    int64_t token, head;
    int64_t bf16;  // bfloat16 instead of float
};

// Mirrored in norm_cpu.py.
struct Problem {
    int64_t tokens, heads, width, parts, threads;
    double eps;
    Rows x, out;           // x: null where a gradient does not need it; out: of x's shape
    Rows grad, grad_x;     // of out and of x; null in the forward pass
    float* scales;         // s of every row; null: no norm
    const float* gain;     // g of every head; null: none
    int64_t gain_step;     // from one head's gain to the next one's
    float *sums, *grad_gain;  // dg of every part, and of all
    int64_t gains;         // numbers of dg
    const float *cos, *sin;  // of the first `positions` tokens, then again; null: no rotation
    int64_t turned, positions;  // d, the numbers of a row that turn
    Parallel parallel;
};

struct Call : Problem {
    std::atomic<int64_t> next;
    explicit Call(const Problem& problem) : Problem(problem), next(0) {}
};

static thread_local Room room;

// ---- vectors and what is left of one

struct Whole {};
struct Part {
    int64_t count;
};

template <class Number>
static inline Vec take(const Number* from, Whole) {
    return get(from);
}
template <class Number>
static inline Vec take(const Number* from, Part part) {
    return get_part(from, part.count);
}
template <class Number>
static inline void give(Number* to, Vec x, Whole) {
    store(to, x);
}
template <class Number>
static inline void give(Number* to, Vec x, Part part) {
    store_part(to, x, part.count);
}

// f(i, what) for every vector of numbers i, i + 1, ...
template <class F>
static inline void sweep(int64_t from, int64_t to, F f) {
    int64_t i = from;
    for (; i + W <= to; i += W) f(i, Whole());
    if (i < to) f(i, Part{to - i});
}

// By halves: one after the other they would wait for each other.
static inline float total(Vec x) {
    float sums[W];
    store(sums, x);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

// ---- a row

template <class In, class Out>
static void forward(const In* x, Out* out, int64_t width, float scale, const float* gain, int64_t turned,
                    const float* cos, const float* sin) {
    auto normed = [&](int64_t i, auto part) {
        const Vec y = take(x + i, part) * scale;
        return gain ? y * take(gain + i, part) : y;
    };
    const int64_t half = turned / 2;
    sweep(0, half, [&](int64_t i, auto part) {
        const Vec a = normed(i, part), b = normed(i + half, part), c = take(cos + i, part), s = take(sin + i, part);
        give(out + i, a * c - b * s, part);
        give(out + i + half, b * c + a * s, part);
    });
    sweep(turned, width, [&](int64_t i, auto part) { give(out + i, normed(i, part), part); });
}

template <class In>
static float find_scale(const In* x, int64_t width, double eps) {
    Vec sum = {};
    sweep(0, width, [&](int64_t i, auto part) {
        const Vec own = take(x + i, part);
        sum += own * own;
    });
    return 1 / std::sqrt(total(sum) / (float)width + (float)eps);
}

// The gradient turned back, as floats.
template <class Out>
static void turn_back(const Out* grad, float* to, int64_t width, int64_t turned, const float* cos, const float* sin) {
    const int64_t half = turned / 2;
    sweep(0, half, [&](int64_t i, auto part) {
        const Vec a = take(grad + i, part), b = take(grad + i + half, part);
        const Vec c = take(cos + i, part), s = take(sin + i, part);
        give(to + i, a * c + b * s, part);
        give(to + i + half, b * c - a * s, part);
    });
    sweep(turned, width, [&](int64_t i, auto part) { give(to + i, take(grad + i, part), part); });
}

// Through the norm; `grad` becomes u g.
template <class In>
static void backward(const In* x, float* grad, In* grad_x, int64_t width, float scale, const float* gain, float* sums) {
    Vec sum = {};
    sweep(0, width, [&](int64_t i, auto part) {
        const Vec y = take(x + i, part) * scale;
        Vec own = take(grad + i, part);
        if (gain) {
            give(sums + i, take(sums + i, part) + own * y, part);
            own *= take(gain + i, part);
            give(grad + i, own, part);
        }
        sum += own * y;
    });
    const float mean = total(sum) / (float)width;
    sweep(0, width, [&](int64_t i, auto part) {
        const Vec y = take(x + i, part) * scale;
        give(grad_x + i, (take(grad + i, part) - y * mean) * scale, part);
    });
}

// ---- all rows

template <class In, class Out>
static void row(const Call& c, int64_t token, int64_t head, float* sums, float* buffer) {
    const int64_t at = token * c.heads + head, half = c.turned / 2;
    const In* x = c.x.data ? (const In*)c.x.data + token * c.x.token + head * c.x.head : nullptr;
    const float* gain = c.gain ? c.gain + head * c.gain_step : nullptr;
    const float *cos = c.cos ? c.cos + token % c.positions * half : nullptr,
                *sin = c.sin ? c.sin + token % c.positions * half : nullptr;
    if (!c.grad.data) {
        const float scale = c.scales ? c.scales[at] = find_scale(x, c.width, c.eps) : 1;
        Out* out = (Out*)c.out.data + token * c.out.token + head * c.out.head;
        forward(x, out, c.width, scale, gain, c.turned, cos, sin);
        return;
    }
    const Out* grad = (const Out*)c.grad.data + token * c.grad.token + head * c.grad.head;
    In* grad_x = (In*)c.grad_x.data + token * c.grad_x.token + head * c.grad_x.head;
    turn_back(grad, buffer, c.width, c.turned, cos, sin);
    if (c.scales)
        backward(x, buffer, grad_x, c.width, c.scales[at], gain, sums ? sums + head * c.gain_step : nullptr);
    else
        sweep(0, c.width, [&](int64_t i, auto part) { give(grad_x + i, take(buffer + i, part), part); });
}

template <class In, class Out>
static void rows(const Call& c, int64_t part) {
    float* sums = c.sums ? c.sums + part * c.gains : nullptr;
    for (int64_t i = 0; sums && i < c.gains; i++) sums[i] = 0;
    float* buffer = room.floats(c.width);
    const int64_t all = c.tokens * c.heads, end = all * (part + 1) / c.parts;
    int64_t at = all * part / c.parts, token = at / c.heads, head = at % c.heads;
    for (; at < end; at++) {
        row<In, Out>(c, token, head, sums, buffer);
        if (++head == c.heads) head = 0, token++;
    }
}

// Take parts until there are none left.
static void work(void* argument) {
    Call& c = *(Call*)argument;
    const bool out = c.grad.data ? c.grad.bf16 : c.out.bf16, in = c.grad.data ? c.grad_x.bf16 : c.x.bf16;
    for (int64_t part; (part = c.next.fetch_add(1)) < c.parts;) {
        if (in && out)
            rows<uint16_t, uint16_t>(c, part);
        else if (in)
            rows<uint16_t, float>(c, part);
        else if (out)
            rows<float, uint16_t>(c, part);
        else
            rows<float, float>(c, part);
    }
}

extern "C" void widestream_norm(const Problem* problem) {
    Call call(*problem);
    if (call.threads > 1 && call.tokens * call.heads * call.width > FEW)  // all threads: see gelu.cpp
        call.parallel(work, &call, (unsigned)call.threads, 0);
    else
        work(&call);
    for (int64_t i = 0; call.sums && i < call.gains; i++) call.grad_gain[i] = call.sums[i];
    for (int64_t part = 1; call.sums && part < call.parts; part++)
        for (int64_t i = 0; i < call.gains; i++) call.grad_gain[i] += call.sums[part * call.gains + i];
}
