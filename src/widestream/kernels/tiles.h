// Vectors, numbers in memory of any strides and type, the exponential, and products of tiles.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#endif

// W: numbers of a vector. COLUMNS: vectors side by side in a block of a product.
#if defined(__AVX512F__)
constexpr int W = 16, COLUMNS = 4;
#elif defined(__AVX__)
constexpr int W = 8, COLUMNS = 2;
#elif defined(__aarch64__)
constexpr int W = 4, COLUMNS = 4;
#else
constexpr int W = 4, COLUMNS = 2;
#endif
// Longest contraction in one go, so that the right factor's panel stays in the nearest cache.
constexpr int64_t DEPTH = 128;
constexpr int LINES = 8;  // cache lines asked for at a time

typedef float Vec __attribute__((vector_size(4 * W)));
typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));

typedef uint32_t Bits __attribute__((vector_size(4 * W)));
typedef uint16_t Halves __attribute__((vector_size(2 * W)));
typedef uint16_t UnalignedHalves __attribute__((vector_size(2 * W), aligned(2), may_alias));

static inline Vec load(const float* p) { return *(const Unaligned*)p; }
static inline void store(float* p, Vec x) { *(Unaligned*)p = x; }
static inline int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

// Numbers in memory with any strides [N, V, P]; null where there are none.
struct View {
    void* data;
    int64_t token, row, column;  // strides
    int64_t bf16;                // bfloat16 instead of float
};

// ---- numbers in memory

static inline Vec widen(Halves x) { return (Vec)(__builtin_convertvector(x, Bits) << 16); }

// To the nearest, ties to even; NaN stays NaN. The processor's own instruction makes subnormal numbers zero.
#if defined(__AVX512BF16__)
static inline Halves narrow(Vec value) { return (Halves)_mm512_cvtneps_pbh((__m512)value); }
#else
static inline Halves narrow(Vec value) {
    const Bits bits = (Bits)value, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits nan = (Bits)((bits & 0x7fffffff) > 0x7f800000);
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), Halves);
}
#endif

// The first n < W numbers of a vector; the others are zero, or stay in memory as they are.
static inline Halves load_part(const uint16_t* from, int64_t n) {
    Halves x = {};
    memcpy(&x, from, n * 2);
    return x;
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
static inline void store_part(float* to, Vec x, int64_t n) { _mm512_mask_storeu_ps(to, (1u << n) - 1, (__m512)x); }
static inline void store_part(uint16_t* to, Vec x, int64_t n) {
    _mm256_mask_storeu_epi16(to, (1u << n) - 1, (__m256i)narrow(x));
}
#else
static inline void store_part(float* to, Vec x, int64_t n) { memcpy(to, &x, n * 4); }
static inline void store_part(uint16_t* to, Vec x, int64_t n) {
    const Halves halves = narrow(x);
    memcpy(to, &halves, n * 2);
}
#endif
static inline void store(uint16_t* to, Vec x) { *(UnalignedHalves*)to = narrow(x); }

// A vector of either type; of a part, the first n < W numbers.
static inline Vec get(const float* from) { return load(from); }
static inline Vec get(const uint16_t* from) { return widen(*(const UnalignedHalves*)from); }
static inline Vec get_part(const float* from, int64_t n) {
    Vec x = {};
    memcpy(&x, from, n * 4);
    return x;
}
static inline Vec get_part(const uint16_t* from, int64_t n) { return widen(load_part(from, n)); }

// n numbers; `to` has room for whole vectors.
static inline void widen_row(const uint16_t* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, widen(*(const UnalignedHalves*)(from + i)));
    if (i < n) store(to + i, widen(load_part(from + i, n - i)));
}

// n numbers; `from` has whole vectors.
template <class Number>
static inline void put_row(const float* from, Number* to, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(to + i, load(from + i));
    if (i < n) store_part(to + i, load(from + i), n - i);
}

// A factor: element (i, p) is at data[i * stride + p], or, if transposed, at data[p * stride + i].
struct Matrix {
    const float* data;
    int64_t stride;
    bool transposed;
    Matrix flipped() const { return {data, stride, !transposed}; }
};

static bool by_columns(const View& view) { return view.column != 1 && view.row == 1; }

// How a view's numbers are walked through: rows of numbers that lie side by side, if there is a way to have them so.
struct Walk {
    bool flip;  // rows are the view's columns
    int64_t rows, length, stride, step;
    Walk(const View& view, int64_t V, int64_t P) : flip(by_columns(view)) {
        rows = flip ? P : V, length = flip ? V : P;
        stride = flip ? view.column : view.row, step = flip ? view.row : view.column;
    }
};

// A token's [V, P] numbers as floats; `buffer`, of rows in whole vectors, is used where they are not that already.
static Matrix fetch(const View& view, int64_t token, int64_t V, int64_t P, float* buffer) {
    const Walk walk(view, V, P);
    const float* wide = (const float*)view.data + token * view.token;
    const uint16_t* half = (const uint16_t*)view.data + token * view.token;
    const bool even = walk.step == 1;
    if (even && !view.bf16) return {wide, walk.stride, walk.flip};
    if (even && walk.stride == walk.length) {
        widen_row(half, buffer, walk.rows * walk.length);
        return {buffer, walk.length, walk.flip};
    }
    const int64_t to_stride = padded(walk.length);
    for (int64_t i = 0; i < walk.rows; i++) {
        float* row = buffer + i * to_stride;
        if (even) {
            widen_row(half + i * walk.stride, row, walk.length);
            continue;
        }
        for (int64_t j = 0; j < walk.length; j++) {
            const int64_t at = i * walk.stride + j * walk.step;
            row[j] = view.bf16 ? widen(load_part(half + at, 1))[0] : wide[at];
        }
    }
    return {buffer, to_stride, walk.flip};
}

// The way back: rows of `from`, which are the view's columns where it lies by columns.
static void put(const View& view, int64_t token, int64_t V, int64_t P, const float* from, int64_t from_stride) {
    const Walk walk(view, V, P);
    float* wide = (float*)view.data + token * view.token;
    uint16_t* half = (uint16_t*)view.data + token * view.token;
    for (int64_t i = 0; i < walk.rows; i++, from += from_stride) {
        if (walk.step == 1 && view.bf16)
            put_row(from, half + i * walk.stride, walk.length);
        else if (walk.step == 1)
            put_row(from, wide + i * walk.stride, walk.length);
        else
            for (int64_t j = 0; j < walk.length; j++) {
                const int64_t at = i * walk.stride + j * walk.step;
                if (view.bf16)
                    store_part(half + at, Vec{from[j]}, 1);
                else
                    wide[at] = from[j];
            }
    }
}

// ---- the exponential

constexpr float SMALLEST = -87;  // below it the exponential is taken for zero

// exp(x) to 2e-7 of itself, for x of at most about 80: 2 to a whole power, times a polynomial for the rest.
static inline Vec exponential(Vec x) {
    const Vec all = {}, shift = all + 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to whole numbers
    const Vec kept = x < SMALLEST ? all + SMALLEST : x;
    const Vec moved = kept * 1.44269504f + shift, whole = moved - shift;
    const Vec rest = (kept - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Vec sum = all + 1.3888889e-3f;
    sum = sum * rest + 8.3333333e-3f, sum = sum * rest + 4.1666667e-2f, sum = sum * rest + 0.16666667f;
    sum = sum * rest + 0.5f, sum = sum * rest + 1.0f, sum = sum * rest + 1.0f;
    const Vec power = (Vec)(((Bits)moved << 23) + 0x3f800000);
    return x < SMALLEST ? all : sum * power;
}

// ---- products

// Memory that will be wanted soon. A product asks for some of it at every block: so many loads may be under way and no
// more, and all at once they would only be waited for.
struct Ahead {
    struct Range {
        const char *next, *end;
    } ranges[2];
    void set(int range, const void* from, int64_t bytes) { ranges[range] = {(const char*)from, (const char*)from + bytes}; }
    void ask() {
        for (Range& own : ranges)
            for (int i = 0; i < LINES && own.next < own.end; i++, own.next += 64) __builtin_prefetch(own.next, 0, 2);
    }
};
static thread_local Ahead ahead = {};

enum Mode { SET, ADD, SUBTRACT };

// ROWS rows by VECTORS vectors of C = A B, kept in registers over the contraction of length P.
template <int ROWS, int VECTORS, bool TRANSPOSED>
static inline void block(int64_t P, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc,
                         Mode mode) {
    Vec sums[ROWS][VECTORS] = {};
    for (int64_t p = 0; p < P; p++) {
        Vec right[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) right[j] = load(B + p * ldb + j * W);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const float left = TRANSPOSED ? A[p * lda + i] : A[i * lda + p];
#pragma GCC unroll 8
            for (int j = 0; j < VECTORS; j++) sums[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; j++) {
            float* c = C + i * ldc + j * W;
            store(c, mode == SET ? sums[i][j] : mode == ADD ? load(c) + sums[i][j] : load(c) - sums[i][j]);
        }
}

// All rows, blocks of ROWS first and then of half as many, down to one.
template <int ROWS, int VECTORS, bool TRANSPOSED>
static inline void strip(int64_t rows, int64_t P, const float* A, int64_t lda, const float* B, int64_t ldb, float* C,
                         int64_t ldc, Mode mode) {
    Ahead& own = ahead;
    for (; rows >= ROWS; rows -= ROWS, A += TRANSPOSED ? ROWS : ROWS * lda, C += ROWS * ldc) {
        own.ask();
        block<ROWS, VECTORS, TRANSPOSED>(P, A, lda, B, ldb, C, ldc, mode);
    }
    if constexpr (ROWS > 1)
        strip<(ROWS == 6 ? 4 : ROWS / 2), VECTORS, TRANSPOSED>(rows, P, A, lda, B, ldb, C, ldc, mode);
}

template <bool TRANSPOSED>
static void panels(int64_t rows, int64_t P, int64_t width, const float* A, int64_t lda, const float* B, int64_t ldb,
                   float* C, int64_t ldc, Mode mode) {
    for (int64_t j = 0; j < width;) {
        const int64_t left = (width - j) / W;
        if (COLUMNS >= 4 && left >= 4) {
            strip<6, 4, TRANSPOSED>(rows, P, A, lda, B + j, ldb, C + j, ldc, mode), j += 4 * W;
        } else if (COLUMNS >= 3 && left == 3) {
            strip<8, 3, TRANSPOSED>(rows, P, A, lda, B + j, ldb, C + j, ldc, mode), j += 3 * W;
        } else if (left >= 2) {
            strip<(COLUMNS >= 4 ? 8 : 6), 2, TRANSPOSED>(rows, P, A, lda, B + j, ldb, C + j, ldc, mode), j += 2 * W;
        } else {
            strip<8, 1, TRANSPOSED>(rows, P, A, lda, B + j, ldb, C + j, ldc, mode), j += W;
        }
    }
}

// C [rows, width] = A [rows, P] B [P, width], or added to C, or subtracted; width in whole vectors.
static void multiply(int64_t rows, int64_t P, int64_t width, Matrix A, const float* B, int64_t ldb, float* C,
                     int64_t ldc, Mode mode) {
    for (int64_t p = 0; p < P || p == 0; p += DEPTH, mode = mode == SET ? ADD : mode) {
        const int64_t depth = P - p < DEPTH ? P - p : DEPTH;
        if (A.transposed)
            panels<true>(rows, depth, width, A.data + p * A.stride, A.stride, B + p * ldb, ldb, C, ldc, mode);
        else
            panels<false>(rows, depth, width, A.data + p, A.stride, B + p * ldb, ldb, C, ldc, mode);
    }
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Lanes __attribute__((vector_size(4 * W)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Lanes{__VA_ARGS__})
#endif

template <int D, int... L>
static inline void swap_lanes(Vec& a, Vec& b, std::integer_sequence<int, L...>) {
    const Vec low = SHUFFLE(a, b, ((L & D) ? W + L - D : L)...);
    b = SHUFFLE(a, b, ((L & D) ? W + L : L + D)...);
    a = low;
}

template <int D>
static inline void transpose_from(Vec (&rows)[W]) {
    if constexpr (D < W) {
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (!(i & D)) swap_lanes<D>(rows[i], rows[i + D], std::make_integer_sequence<int, W>());
        transpose_from<2 * D>(rows);
    }
}

// Tile [V, Kp] -> [Kp, Vp], padded with zeros; what is taken from i on is f(i, it).
template <class F>
static void transpose(const float* tile, int64_t V, int64_t Kp, float* to, F f) {
    const int64_t Vp = padded(V);
    for (int64_t v = 0; v < V; v += W)
        for (int64_t k = 0; k < Kp; k += W) {
            Vec rows[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; i++) {
                const int64_t at = (v + i) * Kp + k;
                rows[i] = v + i < V ? f(at, load(tile + at)) : Vec{};
            }
            transpose_from<1>(rows);
#pragma GCC unroll 16
            for (int i = 0; i < W; i++) store(to + (k + i) * Vp + v, rows[i]);
        }
}

static void transpose(const float* tile, int64_t V, int64_t Kp, float* to) {
    transpose(tile, V, Kp, to, [](int64_t, Vec x) { return x; });
}
