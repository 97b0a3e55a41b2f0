// GELU by its tanh approximation, and its gradient, on a CPU. gelu_cpu.py compiles, loads and calls this file.
//
//     gelu(x) = x (1 + tanh u) / 2 = x s,  s = 1 / (1 + exp(-2 u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)
//     gelu'(x) = s + 2 x s (1 - s) u'

#include "threads.h"
#include "tiles.h"

constexpr int64_t CHUNK = 1 << 14;  // numbers that a thread takes at a time
constexpr float FACTOR = 0.797884561f, CUBE = 0.044715f;
constexpr float LARGEST = 80;  // of an exponential; 1 / (1 + exp(80)) is next to nothing

// Mirrored in gelu_cpu.py.
struct Problem {
    const void *x, *grad;  // grad: of the output; null in the forward pass
    void* out;             // output, or gradient of x
    int64_t count, bf16, threads;
    Parallel parallel;
};

struct Call : Problem {
    std::atomic<int64_t> next;
    explicit Call(const Problem& problem) : Problem(problem), next(0) {}
};

// exp(-2 u)
static inline Vec power(Vec x) {
    const Vec exponent = x * (-2 * FACTOR) * (1 + CUBE * x * x);
    return exponential(exponent > LARGEST ? exponent * 0 + LARGEST : exponent);
}

static inline Vec gelu(Vec x) { return x / (1 + power(x)); }

static inline Vec slope(Vec x) {
    const Vec e = power(x), s = 1 / (1 + e);  // 1 - s is e s
    return s + x * s * (e * s) * (2 * FACTOR) * (1 + 3 * CUBE * x * x);
}

template <class Number>
static void stretch(const Number* x, const Number* grad, Number* out, int64_t count) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, grad ? get(grad + i) * slope(get(x + i)) : gelu(get(x + i)));
    const int64_t rest = count - i;
    if (!rest) return;
    const Vec last = get_part(x + i, rest);
    store_part(out + i, grad ? get_part(grad + i, rest) * slope(last) : gelu(last), rest);
}

template <class Number>
static void chunk(const Call& c, int64_t first) {
    const Number *x = (const Number*)c.x, *grad = (const Number*)c.grad;
    stretch(x + first, grad ? grad + first : nullptr, (Number*)c.out + first,
            c.count - first < CHUNK ? c.count - first : CHUNK);
}

// Take chunks until there are none left.
static void work(void* argument) {
    Call& c = *(Call*)argument;
    for (int64_t first; (first = c.next.fetch_add(CHUNK)) < c.count;) {
        if (c.bf16)
            chunk<uint16_t>(c, first);
        else
            chunk<float>(c, first);
    }
}

extern "C" void widestream_gelu(const Problem* problem) {
    Call call(*problem);
    if (call.threads > 1 && call.count > CHUNK)  // all threads: the pool would be built anew for another number
        call.parallel(work, &call, (unsigned)call.threads, 0);
    else
        work(&call);
}
