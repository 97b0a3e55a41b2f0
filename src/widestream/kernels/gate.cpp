// Gated activations on a CPU: act(gate) * value, and the gradient. gate_cpu.py compiles, loads and calls this file.
//
//     act(g) = g s,  s = 1 / (1 + exp(-2 u))      SiLU: 2 u = g; GELU's tanh form: u = sqrt(2 / pi) (g + 0.044715 g^3)
//     act'(g) = s + g s (1 - s) 2 u'

#include "threads.h"
#include "tiles.h"

constexpr int64_t CHUNK = 1 << 14;  // numbers that a thread takes at a time, at least a row
constexpr float FACTOR = 0.797884561f, CUBE = 0.044715f;
constexpr float LARGEST = 80;  // of an exponential; 1 / (1 + exp(80)) is next to nothing

// Mirrored in gate_cpu.py.
struct Problem {
    const void *x, *grad;  // x: rows of gates, then values; grad: of the output, null in the forward pass
    void* out;             // output, or gradient of x
    int64_t rows, neurons, tanh, bf16, threads;
    Parallel parallel;
};

struct Call : Problem {
    std::atomic<int64_t> next;
    const int64_t step;  // rows that a thread takes at a time
    explicit Call(const Problem& problem)
        : Problem(problem), next(0), step(CHUNK > problem.neurons ? CHUNK / problem.neurons : 1) {}
};

struct Silu {
    static Vec minus_2u(Vec g) { return -g; }
    static Vec slope_2u(Vec g) { return g * 0 + 1; }
};

struct Gelu {
    static Vec minus_2u(Vec g) { return g * (-2 * FACTOR) * (1 + CUBE * g * g); }
    static Vec slope_2u(Vec g) { return 2 * FACTOR * (1 + 3 * CUBE * g * g); }
};

// exp(-2 u)
template <class Act>
static inline Vec power(Vec g) {
    const Vec exponent = Act::minus_2u(g);
    return exponential(exponent > LARGEST ? exponent * 0 + LARGEST : exponent);
}

template <class Act>
static inline Vec forward(Vec gate, Vec value) {
    return gate / (1 + power<Act>(gate)) * value;
}

struct Pair {
    Vec gate, value;
};

template <class Act>
static inline Pair backward(Vec gate, Vec value, Vec grad) {
    const Vec e = power<Act>(gate), s = 1 / (1 + e);  // 1 - s is e s
    return {grad * value * (s + gate * s * (e * s) * Act::slope_2u(gate)), grad * gate * s};
}

template <class Act, class Number>
static void row(const Number* x, const Number* grad, Number* out, int64_t neurons) {
    int64_t i = 0;
    for (; i + W <= neurons; i += W) {
        const Vec gate = get(x + i), value = get(x + neurons + i);
        if (grad) {
            const Pair both = backward<Act>(gate, value, get(grad + i));
            store(out + i, both.gate), store(out + neurons + i, both.value);
        } else {
            store(out + i, forward<Act>(gate, value));
        }
    }
    const int64_t rest = neurons - i;
    if (!rest) return;
    const Vec gate = get_part(x + i, rest), value = get_part(x + neurons + i, rest);
    if (grad) {
        const Pair both = backward<Act>(gate, value, get_part(grad + i, rest));
        store_part(out + i, both.gate, rest), store_part(out + neurons + i, both.value, rest);
    } else {
        store_part(out + i, forward<Act>(gate, value), rest);
    }
}

template <class Act, class Number>
static void chunk(const Call& c, int64_t first) {
    const int64_t F = c.neurons, end = first + c.step < c.rows ? first + c.step : c.rows;
    for (int64_t r = first; r < end; r++) {
        const Number* grad = c.grad ? (const Number*)c.grad + r * F : nullptr;
        row<Act>((const Number*)c.x + r * 2 * F, grad, (Number*)c.out + r * (grad ? 2 * F : F), F);
    }
}

template <class Act>
static void chunk(const Call& c, int64_t first) {
    if (c.bf16)
        chunk<Act, uint16_t>(c, first);
    else
        chunk<Act, float>(c, first);
}

// Take chunks until there are none left.
static void work(void* argument) {
    Call& c = *(Call*)argument;
    for (int64_t first; (first = c.next.fetch_add(c.step)) < c.rows;) {
        if (c.tanh)
            chunk<Gelu>(c, first);
        else
            chunk<Silu>(c, first);
    }
}

extern "C" void widestream_gate(const Problem* problem) {
    Call call(*problem);
    if (call.threads > 1 && call.rows > call.step)  // all threads: the pool would be built anew for another number
        call.parallel(work, &call, (unsigned)call.threads, 0);
    else
        work(&call);
}
