// The kernels, compiled once per instruction set (LOWPREC_NAMESPACE) with that set's flags.
//
// A tensor is worked through in chunks that fit the first-level cache: one block of a row, or as many whole rows as
// fill a block where rows are narrow. Per chunk: decode to floats, update, encode. Everything is `static` and free of
// library templates, so that no function compiled for a newer machine can be linked into the path of an older one.
// Compiled without contraction or reassociation: the results are those of reference.py, bit for bit.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lowprec.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace LOWPREC_NAMESPACE {

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));

enum : uint32_t { INFINITE = 0x7F800000u };  // the bits of a float; a NaN's are above
enum { MAX = LOWPREC_MAX_BLOCK, MIN_EXPONENT = -110, GROUP = 16 };

static const float FLOAT_MAX = 3.40282347e38f;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

static inline float power_of_two(int32_t e) {
    uint32_t bits = (uint32_t)(e + 127) << 23;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t bits_of(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    return b;
}

// ---------------------------------------------------------------------------------------------------- random bits

struct key32 {
    uint32_t first, second;
};

// The key with the upper half of a 64-bit counter folded in: random_bits.hash32.
static inline key32 key_at(uint64_t key, uint64_t counter) {
    return {(uint32_t)key + (uint32_t)(counter >> 32) * 0x9E3779B9u, (uint32_t)(key >> 32)};
}

static inline uint32_t hash(uint32_t x, key32 k) {
    x ^= k.first;
    x = (x ^ (x >> 16)) * 0x7FEB352Du + k.second;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// The same in every lane: kept as vectors, for the compiler would broadcast a scalar anew in every round of a loop.
struct key256 {
    u8 first, second;
    key256() = default;
    explicit key256(key32 k) : first(u8{} + k.first), second(u8{} + k.second) {}
};

static inline u8 hash(u8 x, const key256 &k) {
    x ^= k.first;
    x = (x ^ (x >> 16)) * 0x7FEB352Du + k.second;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
}

// Where a block's random bits come from: given, or hashed from the counter of its first element.
struct randomness {
    const int32_t *given;
    uint64_t key, counter;
    bool stochastic;

    uint32_t at(int64_t j) const {
        if (given) return (uint32_t)given[j];
        uint64_t c = counter + (uint64_t)(j / GROUP) * 8 + (uint64_t)(j % 8);
        return hash((uint32_t)c, key_at(key, c)) >> (j / 8 % 2 * 16) & 0xFFFFu;
    }
};

// ------------------------------------------------------------------------------------------------- floats in and out

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) {
        uint32_t b = sign | 0x7F800000u | (magnitude & 0x3FFu) << 13;
        float f;
        memcpy(&f, &b, 4);
        return f;
    }
    uint32_t b = magnitude << 13;  // a float 2**112 too small, denormals included
    float f;
    memcpy(&f, &b, 4);
    f *= 5192296858534827628530496329220096.0f;
    return sign ? -f : f;
}

static void load_floats(const void *source, int32_t type, int64_t at, int64_t n, float *__restrict out) {
    if (type == LOWPREC_FLOAT32) {
        memcpy(out, (const float *)source + at, (size_t)n * 4);
    } else if (type == LOWPREC_BFLOAT16) {
        const uint16_t *__restrict s = (const uint16_t *)source + at;
        uint32_t *__restrict o = (uint32_t *)out;
        for (int64_t j = 0; j < n; j++) o[j] = (uint32_t)s[j] << 16;
    } else {
        const uint16_t *__restrict s = (const uint16_t *)source + at;
        for (int64_t j = 0; j < n; j++) out[j] = half_to_float(s[j]);
    }
}

// Rounds finite floats to bfloat16, ties to even.
static void store_bfloat16(const float *__restrict x, int64_t n, uint16_t *__restrict out) {
    for (int64_t j = 0; j < n; j++) {
        uint32_t b = bits_of(x[j]);
        out[j] = (uint16_t)((b + 0x7FFFu + (b >> 16 & 1u)) >> 16);
    }
}

// ------------------------------------------------------------------------------------------------------------ decode

static void decode_block(const lowprec_store &s, int64_t at, int64_t n, int32_t exponent, float *__restrict out) {
    const float scale = power_of_two(exponent);
    if (s.low) {
        const int16_t *__restrict c = (const int16_t *)s.codes + at;
        const uint8_t *__restrict l = s.low + at;
        const int shift = 24 - s.word_length;
        for (int64_t j = 0; j < n; j++) out[j] = (float)(((int32_t)c[j] * 256 + l[j]) >> shift) * scale;
    } else if (s.word_length > 8) {
        const int16_t *__restrict c = (const int16_t *)s.codes + at;
        for (int64_t j = 0; j < n; j++) out[j] = (float)c[j] * scale;
    } else {
        const int8_t *__restrict c = (const int8_t *)s.codes + at;
        for (int64_t j = 0; j < n; j++) out[j] = (float)c[j] * scale;
    }
}

// ------------------------------------------------------------------------------------------------------------ encode

static inline i8 round_to_int(f8 x) {
#if defined(__AVX2__)
    return (i8)_mm256_cvtps_epi32((__m256)x);
#else
    i8 r;
    for (int j = 0; j < 8; j++) r[j] = (int32_t)lrintf(x[j]);
    return r;
#endif
}

static inline int32_t clamp(int32_t v, int32_t low, int32_t high) { return v < low ? low : v > high ? high : v; }

#if defined(__AVX2__)
static inline void store_group(i8 a, i8 b, int16_t *out) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xD8);
    _mm256_storeu_si256((__m256i *)out, packed);
}
static inline void store_group(i8 a, i8 b, int8_t *out) {
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xD8);
    _mm_storeu_si128((__m128i *)out,
                     _mm_packs_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
}
#else
template <typename T>
static inline void store_group(i8 a, i8 b, T *out) {
    for (int j = 0; j < 8; j++) out[j] = (T)a[j];
    for (int j = 0; j < 8; j++) out[8 + j] = (T)b[j];
}
#endif

// The common case of a block: codes of up to 16 bits in range, random bits hashed, straight into their container.
template <typename T, bool STOCHASTIC, bool SQUARED>
static void round_into(const float *__restrict x, int64_t n, int32_t exponent, const randomness &random, T *out) {
    const float scale = power_of_two(STOCHASTIC ? 16 - exponent : -exponent);
    u8 counter = u8{0, 1, 2, 3, 4, 5, 6, 7} + (uint32_t)random.counter;
    const key256 key(key_at(random.key, random.counter));
    alignas(32) T last[GROUP];
    for (int64_t j = 0; j < n; j += GROUP, counter += 8) {
        f8 a, b;
        memcpy(&a, x + j, 32);
        memcpy(&b, x + j + 8, 32);
        i8 ca = round_to_int(a * scale), cb = round_to_int(b * scale);
        if (STOCHASTIC) {
            const u8 word = hash(counter, key);
            ca = (ca + (i8)(word & 0xFFFFu)) >> 16;
            cb = (cb + (i8)(word >> 16)) >> 16;
        }
        if (SQUARED) {  // a comparison is -1 where it holds
            ca = ca - ((ca == 0) & (a > 0));
            cb = cb - ((cb == 0) & (b > 0));
        }
        if (n - j >= GROUP) {
            store_group(ca, cb, out + j);
        } else {
            store_group(ca, cb, last);
            memcpy(out + j, last, (size_t)(n - j) * sizeof(T));
        }
    }
}

template <typename T>
static void round_into(const float *x, int64_t n, int32_t exponent, bool squared, const randomness &random, T *out) {
    if (random.stochastic)
        squared ? round_into<T, true, true>(x, n, exponent, random, out)
                : round_into<T, true, false>(x, n, exponent, random, out);
    else
        squared ? round_into<T, false, true>(x, n, exponent, random, out)
                : round_into<T, false, false>(x, n, exponent, random, out);
}

// Codes of any width, saturating, in double precision. Returns how many were out of range.
static int64_t round_block_wide(const float *x, int64_t n, int32_t exponent, int32_t low, int32_t high,
                                const randomness &random, int32_t *code) {
    const double scale = (double)power_of_two(-exponent);
    int64_t saturated = 0;
    for (int64_t j = 0; j < n; j++) {
        double v = (double)x[j] * scale;
        if (v < low || v > high) {
            saturated++;
            v = v < low ? low : high;
        }
        if (random.stochastic)
            code[j] = (int32_t)(((int64_t)nearbyint(v * 65536.0) + random.at(j)) >> 16);
        else
            code[j] = (int32_t)nearbyint(v);
    }
    return saturated;
}

static uint32_t largest_bits(const float *__restrict x, int64_t n) {
    const uint32_t *__restrict b = (const uint32_t *)x;
    int32_t largest = 0;
    for (int64_t j = 0; j < n; j++) {
        int32_t m = (int32_t)(b[j] & 0x7FFFFFFFu);
        largest = m > largest ? m : largest;
    }
    return (uint32_t)largest;
}

// After rounding, the exponent is still the smallest: where rounding down has left room, the codes are doubled.
template <typename T>
static int32_t normalize(T *__restrict code, int64_t n, int32_t max_code, int32_t exponent) {
    int32_t top = 0;
    for (int64_t j = 0; j < n; j++) {
        const int32_t m = code[j] < 0 ? -code[j] : code[j];
        top = m > top ? m : top;
    }
    if (top == 0) return MIN_EXPONENT;
    if (top > max_code >> 1 || exponent == MIN_EXPONENT) return exponent;
    for (int64_t j = 0; j < n; j++) code[j] = (T)(code[j] * 2);
    return exponent - 1;
}

// The smallest exponent that holds a magnitude, and whether the magnitude lies above the largest code of the next
// smaller one though in its binade. `magnitude` is the bits of a finite float other than zero.
static inline int32_t max_exponent(int32_t word_length) { return word_length > 3 ? 129 - word_length : 126; }

static inline int32_t exponent_for(uint32_t magnitude, int32_t word_length, bool &carry) {
    const int shift = 25 - word_length;  // mantissa bits below the (word_length - 2) that a code keeps
    const uint32_t full = ((1u << (word_length - 2)) - 1u) << shift;
    carry = (magnitude & 0x7FFFFFu) > full;
    int32_t e = (int32_t)(magnitude >> 23) - 127 - (word_length - 2) + (carry ? 1 : 0);
    return clamp(e, MIN_EXPONENT, max_exponent(word_length));
}

static void store_codes(const lowprec_store &s, int64_t at, int64_t n, const int32_t *__restrict code) {
    if (s.low) {
        int16_t *__restrict c = (int16_t *)s.codes + at;
        uint8_t *__restrict l = s.low + at;
        const int shift = 24 - s.word_length;
        for (int64_t j = 0; j < n; j++) {
            const int32_t wide = (int32_t)((uint32_t)code[j] << shift);
            c[j] = (int16_t)(wide >> 8);
            l[j] = (uint8_t)(wide & 255);
        }
    } else if (s.word_length > 8) {
        int16_t *__restrict c = (int16_t *)s.codes + at;
        for (int64_t j = 0; j < n; j++) c[j] = (int16_t)code[j];
    } else {
        int8_t *__restrict c = (int8_t *)s.codes + at;
        for (int64_t j = 0; j < n; j++) c[j] = (int8_t)code[j];
    }
}

// Rounds one block and writes it. x is padded to whole groups with zeros, and may be changed; `largest` is
// largest_bits(x, n). Returns how many saturated.
static int64_t encode_block(const lowprec_store &s, int64_t at, int64_t n, int8_t *exponent_out, float *x,
                            uint32_t largest, const randomness &random) {
    alignas(64) int32_t code[MAX];
    const int32_t max_code = (1 << (s.word_length - 1)) - 1;
    if (!exponent_out) {
        const int64_t saturated = round_block_wide(x, n, s.exponent, -max_code - 1, max_code, random, code);
        store_codes(s, at, n, code);
        return saturated;
    }
    if (largest >= INFINITE) {  // an overflow saturates; the caller has refused NaN
        for (int64_t j = 0; j < n; j++) x[j] = x[j] > FLOAT_MAX ? FLOAT_MAX : x[j] < -FLOAT_MAX ? -FLOAT_MAX : x[j];
        largest = 0x7F7FFFFFu;
    }
    if (largest == 0) {
        *exponent_out = MIN_EXPONENT;
        memset(code, 0, (size_t)n * 4);
        store_codes(s, at, n, code);
        return 0;
    }
    bool carry;
    int32_t e = exponent_for(largest, s.word_length, carry);
    const bool doubtful = carry || e == MIN_EXPONENT;
    int64_t saturated = 0;
    const bool one_key = random.counter >> 32 == (random.counter + (uint64_t)n / 2) >> 32;
    if (s.word_length <= 16 && e < max_exponent(s.word_length) && !random.given && one_key) {
        if (s.word_length > 8) {
            int16_t *out = (int16_t *)s.codes + at;
            round_into(x, n, e, s.squared, random, out);
            if (doubtful) e = normalize(out, n, max_code, e);
        } else {
            int8_t *out = (int8_t *)s.codes + at;
            round_into(x, n, e, s.squared, random, out);
            if (doubtful) e = normalize(out, n, max_code, e);
        }
    } else {
        saturated = round_block_wide(x, n, e, -max_code, max_code, random, code);
        if (s.squared)
            for (int64_t j = 0; j < n; j++) code[j] += (code[j] == 0) & (x[j] > 0);
        if (doubtful) e = normalize(code, n, max_code, e);
        store_codes(s, at, n, code);
    }
    *exponent_out = (int8_t)e;
    return saturated;
}

// Consecutive blocks of a single element each in a format of up to 16 bits, their exponents from exponent_out on.
static int64_t encode_single_elements(const lowprec_store &s, int64_t at, int64_t n, int8_t *exponent_out,
                                      const float *x, bool stochastic, uint64_t counter) {
    alignas(64) int32_t code[MAX];
    const int32_t max_code = (1 << (s.word_length - 1)) - 1;
    int64_t saturated = 0;
    for (int64_t j = 0; j < n; j++) {
        uint32_t magnitude = bits_of(x[j]) & 0x7FFFFFFFu;
        magnitude = magnitude > 0x7F7FFFFFu ? 0x7F7FFFFFu : magnitude;
        bool carry;
        int32_t e = exponent_for(magnitude, s.word_length, carry);
        float v;
        memcpy(&v, &magnitude, 4);
        v = x[j] < 0 ? -v : v;
        const float limit = (float)max_code * power_of_two(e);  // binding at the largest exponent only
        saturated += v > limit || v < -limit;
        v = v > limit ? limit : v < -limit ? -limit : v;
        int32_t c;
        if (stochastic) {
            const uint64_t at_counter = counter + (uint64_t)j * 8;
            const uint32_t r = hash((uint32_t)at_counter, key_at(s.key, at_counter)) & 0xFFFFu;
            c = ((int32_t)lrintf(v * power_of_two(16 - e)) + (int32_t)r) >> 16;
        } else {
            c = (int32_t)lrintf(v * power_of_two(-e));
        }
        c += s.squared && c == 0 && v > 0;
        const int32_t top = c < 0 ? -c : c;
        const bool spare = top != 0 && top <= max_code >> 1 && e > MIN_EXPONENT;
        code[j] = spare ? c * 2 : c;
        exponent_out[j] = (int8_t)(top == 0 ? MIN_EXPONENT : spare ? e - 1 : e);
    }
    store_codes(s, at, n, code);
    return saturated;
}

// ------------------------------------------------------------------------------------------------------------ chunks

// A run of whole blocks: either one block inside a row, or all blocks (one each) of consecutive narrow rows.
struct chunk {
    int64_t at, n;         // elements of the tensor
    int64_t row, column;   // of its first element
    int64_t block_length;  // n, unless it holds several rows
};

static inline int64_t rows_per_chunk(const lowprec_item &item, int32_t block_size) {
    return item.row_length >= block_size ? 1 : block_size / (item.row_length > 0 ? item.row_length : 1);
}

static inline chunk chunk_at(const lowprec_item &item, int32_t block_size, int64_t index) {
    chunk c;
    if (item.row_length > block_size) {
        const int64_t per_row = (item.row_length + block_size - 1) / block_size;
        c.row = index / per_row;
        c.column = index % per_row * block_size;
        c.n = c.block_length = smaller(block_size, item.row_length - c.column);
    } else {
        const int64_t rows = rows_per_chunk(item, block_size);
        c.row = index * rows;
        c.column = 0;
        c.block_length = item.row_length;
        c.n = smaller(rows, item.rows - c.row) * item.row_length;
    }
    c.at = c.row * item.row_length + c.column;
    return c;
}

// The index of the exponent of a chunk's first block.
static inline int64_t first_block(const lowprec_item &item, const lowprec_store &s, const chunk &c) {
    return c.row * ((item.row_length + s.block_size - 1) / s.block_size) + c.column / s.block_size;
}

static void decode(const lowprec_item &item, const lowprec_store &s, const chunk &c, float *out) {
    if (!s.exponents) return decode_block(s, c.at, c.n, s.exponent, out);
    const int8_t *e = s.exponents + first_block(item, s, c);
    if (c.block_length == 1 && !s.low) {
        if (s.word_length > 8)
            for (int64_t j = 0; j < c.n; j++) out[j] = (float)((const int16_t *)s.codes)[c.at + j] * power_of_two(e[j]);
        else
            for (int64_t j = 0; j < c.n; j++) out[j] = (float)((const int8_t *)s.codes)[c.at + j] * power_of_two(e[j]);
        return;
    }
    for (int64_t j = 0; j < c.n; j += c.block_length) decode_block(s, c.at + j, c.block_length, *e++, out + j);
}

static int64_t encode(const lowprec_item &item, const lowprec_store &s, const chunk &c, float *x, uint32_t largest,
                      bool stochastic) {
    const int64_t half_row = padded(item.row_length) / 2;
    uint64_t counter = (uint64_t)((item.first_row + c.row) * half_row + c.column / 2);
    int8_t *e = s.exponents ? s.exponents + first_block(item, s, c) : nullptr;
    if (c.block_length == 1 && e && s.word_length > 2 && s.word_length <= 16 && !item.bits) {
        return encode_single_elements(s, c.at, c.n, e, x, stochastic, counter);
    }
    if (c.block_length == c.n) {
        for (int64_t j = c.n; j < padded(c.n); j++) x[j] = 0;
        return encode_block(s, c.at, c.n, e, x, largest,
                            {item.bits ? item.bits + c.at : nullptr, s.key, counter, stochastic});
    }
    int64_t saturated = 0;
    alignas(64) float row[MAX];
    for (int64_t j = 0; j < c.n; j += c.block_length, counter += (uint64_t)half_row) {
        memcpy(row, x + j, (size_t)c.block_length * 4);
        for (int64_t k = c.block_length; k < padded(c.block_length); k++) row[k] = 0;
        const randomness random = {item.bits ? item.bits + c.at + j : nullptr, s.key, counter, stochastic};
        saturated += encode_block(s, c.at + j, c.block_length, e, row, largest_bits(row, c.block_length), random);
        if (e) e++;
    }
    return saturated;
}

// ----------------------------------------------------------------------------------------------------------- updates

// Each formula of updates.py, for one float or for eight: v[0] is the parameter, v[1] and v[2] its state.
static inline float square_root(float x) { return sqrtf(x); }
static inline f8 square_root(f8 x) {
#if defined(__AVX2__)
    return (f8)_mm256_sqrt_ps((__m256)x);
#else
    for (int j = 0; j < 8; j++) x[j] = sqrtf(x[j]);
    return x;
#endif
}
static inline float sign_of(float x) { return (float)(x > 0) - (float)(x < 0); }
static inline f8 sign_of(f8 x) { return __builtin_convertvector((x < 0) - (x > 0), f8); }  // true is -1

struct sgd {
    enum { STATES = 0, SQUARED = -1 };
    template <typename V>
    static inline void apply(const V *h, V g, V *v) {
        const V d = g * h[0] + v[0] * h[1];
        v[0] = v[0] - d * h[2];
    }
};

struct momentum {
    enum { STATES = 1, SQUARED = -1 };
    template <typename V>
    static inline void apply(const V *h, V g, V *v) {
        const V d = g * h[0] + v[0] * h[1];
        v[1] = v[1] * h[3] + d * h[4];
        v[0] = v[0] - (d * h[5] + v[1] * h[6]) * h[2];
    }
};

struct adam {
    enum { STATES = 2, SQUARED = 2 };
    template <typename V>
    static inline void apply(const V *h, V g, V *v) {
        const V d = g * h[0] + v[0] * h[1];
        v[1] = v[1] + (d - v[1]) * h[4];
        v[2] = square_root((v[2] * v[2]) * h[5] + (d * d) * h[6]);
        v[0] = v[0] - ((v[1] / (v[2] * h[7] + h[8])) * h[2] + v[0] * h[3]);
    }
};

struct lion {
    enum { STATES = 1, SQUARED = -1 };
    template <typename V>
    static inline void apply(const V *h, V g, V *v) {
        const V d = g * h[0];
        const V direction = sign_of(v[1] + (d - v[1]) * h[3]);
        v[0] = v[0] - (direction * h[1] + v[0] * h[2]);
        v[1] = v[1] + (d - v[1]) * h[4];
    }
};

typedef float values[3][MAX + 32];  // 32: the three do not share the sets of a cache

static inline i8 larger(i8 a, i8 b) {
#if defined(__AVX2__)
    return (i8)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return a > b ? a : b;
#endif
}

static inline i8 smaller(i8 a, i8 b) {
#if defined(__AVX2__)
    return (i8)_mm256_min_epi32((__m256i)a, (__m256i)b);
#else
    return a < b ? a : b;
#endif
}

static inline f8 load_codes(const int16_t *code) {
#if defined(__AVX2__)
    return (f8)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)code)));
#else
    f8 x;
    for (int j = 0; j < 8; j++) x[j] = (float)code[j];
    return x;
#endif
}

static inline f8 load_codes(const int8_t *code) {
#if defined(__AVX2__)
    return (f8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)code)));
#else
    f8 x;
    for (int j = 0; j < 8; j++) x[j] = (float)code[j];
    return x;
#endif
}

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 4")  // or the tensors' vectors live in memory
#endif

// A block's new codes in one pass, on the guess that no exponent changes: most often none does. n is a multiple of a
// group; the parameter's codes are of type W, its state's of type S. Nothing of the block is overwritten.
template <typename RULE, typename W, typename S, bool STOCHASTIC>
static void update_guessing(const lowprec_item &item, const chunk &c, const float *grad, const int32_t *exponent,
                            uint64_t counter, int16_t (*code)[MAX], uint32_t *largest) {
    enum { N = 1 + RULE::STATES };
    f8 h[LOWPREC_HYPERS], in[N], out[N];
    key256 key[N];
    i8 top[N];
    for (int k = 0; k < LOWPREC_HYPERS; k++) h[k] = f8{} + item.hyper[k];
    UNROLL for (int k = 0; k < N; k++) {
        in[k] = f8{} + power_of_two(exponent[k]);
        out[k] = f8{} + power_of_two(STOCHASTIC ? 16 - exponent[k] : -exponent[k]);
        key[k] = key256(key_at(item.stores[k].key, counter));
        top[k] = i8{};
    }
    u8 lane = u8{0, 1, 2, 3, 4, 5, 6, 7} + (uint32_t)counter;
    for (int64_t j = 0; j < c.n; j += GROUP, lane += 8) {
        u8 word[N];
        i8 rounded[N][2];
        if (STOCHASTIC)
            UNROLL for (int k = 0; k < N; k++) word[k] = hash(lane, key[k]);
        UNROLL for (int half = 0; half < 2; half++) {
            const int64_t at = j + 8 * half;
            f8 g, v[N];
            memcpy(&g, grad + at, 32);
            v[0] = load_codes((const W *)item.stores[0].codes + c.at + at) * in[0];
            UNROLL for (int k = 1; k < N; k++) v[k] = load_codes((const S *)item.stores[k].codes + c.at + at) * in[k];
            RULE::apply(h, g, v);
            UNROLL for (int k = 0; k < N; k++) {
                i8 bits = (i8)v[k];
                i8 r = round_to_int(v[k] * out[k]);
                if (STOCHASTIC) r = (r + (i8)(half ? word[k] >> 16 : word[k] & 0xFFFFu)) >> 16;
                if (k == RULE::SQUARED)  // a root is never negative, and code 0 is for zero alone
                    r = larger(r, smaller(bits, i8{} + 1));
                else
                    bits &= 0x7FFFFFFF;
                top[k] = larger(top[k], bits);
                rounded[k][half] = r;
            }
        }
        store_group(rounded[0][0], rounded[0][1], (W *)code[0] + j);
        UNROLL for (int k = 1; k < N; k++) store_group(rounded[k][0], rounded[k][1], (S *)code[k] + j);
    }
    UNROLL for (int k = 0; k < N; k++) {
        largest[k] = 0;
        for (int j = 0; j < 8; j++) largest[k] = (uint32_t)top[k][j] > largest[k] ? (uint32_t)top[k][j] : largest[k];
    }
}

// Whether a block of this largest magnitude has this exponent, beyond doubt: see normalize.
static inline bool is_exponent_of(uint32_t largest, int32_t word_length, int32_t exponent) {
    bool carry;
    return largest > 0 && largest < INFINITE && exponent_for(largest, word_length, carry) == exponent && !carry &&
           exponent > MIN_EXPONENT && exponent < max_exponent(word_length);
}

// Whether update_guessing serves an item's formats: dynamic, up to 16 bits, squared where the formula says so.
template <typename RULE>
static bool guessable(const lowprec_item &item) {
    for (int k = 0; k <= RULE::STATES; k++) {
        const lowprec_store &s = item.stores[k];
        if (!s.exponents || s.word_length > 16 || s.squared != (k == RULE::SQUARED)) return false;
    }
    return RULE::STATES < 2 || (item.stores[1].word_length > 8) == (item.stores[2].word_length > 8);
}

template <typename RULE, bool STOCHASTIC>
static void update_with(lowprec_item &item, int64_t begin, int64_t end) {
    enum { N = 1 + RULE::STATES };
    alignas(64) float g[MAX];
    alignas(64) values value;
    alignas(64) int16_t code[3][MAX];
    const bool wide_word = item.stores[0].word_length > 8, wide_state = N > 1 && item.stores[1].word_length > 8;
    const bool formats_fit = guessable<RULE>(item);
    int64_t saturated = 0;
    for (int64_t index = begin; index < end; index++) {
        const chunk c = chunk_at(item, item.stores[0].block_size, index);
        const float *grad = (const float *)item.grad + c.at;
        if (item.grad_type != LOWPREC_FLOAT32) {
            load_floats(item.grad, item.grad_type, c.at, c.n, g);
            grad = g;
        }
        const uint64_t counter = (uint64_t)((item.first_row + c.row) * (padded(item.row_length) / 2) + c.column / 2);
        const bool guess = formats_fit && c.n == c.block_length && c.n % GROUP == 0 &&
                           counter >> 32 == (counter + (uint64_t)c.n / 2) >> 32;
        uint32_t largest[3] = {0, 0, 0};
        bool right = false;
        if (guess) {
            int32_t exponent[3];
            for (int k = 0; k < N; k++) exponent[k] = item.stores[k].exponents[first_block(item, item.stores[k], c)];
            const auto run = wide_word ? (wide_state ? update_guessing<RULE, int16_t, int16_t, STOCHASTIC>
                                                     : update_guessing<RULE, int16_t, int8_t, STOCHASTIC>)
                                       : (wide_state ? update_guessing<RULE, int8_t, int16_t, STOCHASTIC>
                                                     : update_guessing<RULE, int8_t, int8_t, STOCHASTIC>);
            run(item, c, grad, exponent, counter, code, largest);
            right = true;
            for (int k = 0; k < N; k++) right &= is_exponent_of(largest[k], item.stores[k].word_length, exponent[k]);
        }
        if (right) {
            for (int k = 0; k < N; k++) {
                const int64_t size = item.stores[k].word_length > 8 ? 2 : 1;
                memcpy((char *)item.stores[k].codes + c.at * size, code[k], (size_t)(c.n * size));
            }
            continue;
        }
        for (int k = 0; k < N; k++) decode(item, item.stores[k], c, value[k]);
        for (int64_t j = 0; j < c.n; j++) {
            float v[N];
            for (int k = 0; k < N; k++) v[k] = value[k][j];
            RULE::apply(item.hyper, grad[j], v);
            for (int k = 0; k < N; k++) value[k][j] = v[k];
        }
        for (int k = 0; k < N; k++) largest[k] = largest_bits(value[k], c.n);
        if (largest[0] > INFINITE || largest[1] > INFINITE || largest[2] > INFINITE) {  // NaN
            __atomic_store_n(&item.refused, 1, __ATOMIC_RELAXED);
            continue;
        }
        for (int k = 0; k < N; k++) saturated += encode(item, item.stores[k], c, value[k], largest[k], STOCHASTIC);
    }
    __atomic_fetch_add(&item.saturated, saturated, __ATOMIC_RELAXED);
}

template <typename RULE>
static void update_with(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    stochastic ? update_with<RULE, true>(item, begin, end) : update_with<RULE, false>(item, begin, end);
}

static void update_chunks(int32_t algorithm, lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    switch (algorithm) {
        case LOWPREC_SGD: return update_with<sgd>(item, begin, end, stochastic);
        case LOWPREC_MOMENTUM: return update_with<momentum>(item, begin, end, stochastic);
        case LOWPREC_ADAM: return update_with<adam>(item, begin, end, stochastic);
        default: return update_with<lion>(item, begin, end, stochastic);
    }
}

static void quantize_chunks(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    const lowprec_store &s = item.stores[0];
    alignas(64) float x[MAX];
    int64_t saturated = 0;
    for (int64_t index = begin; index < end; index++) {
        const chunk c = chunk_at(item, s.block_size, index);
        load_floats(item.grad, item.grad_type, c.at, c.n, x);
        if (s.squared)
            for (int64_t j = 0; j < c.n; j++) x[j] = sqrtf(x[j]);
        saturated += encode(item, s, c, x, largest_bits(x, c.n), stochastic);
    }
    __atomic_fetch_add(&item.saturated, saturated, __ATOMIC_RELAXED);
}

static void dequantize_chunks(lowprec_item &item, int64_t begin, int64_t end) {
    const lowprec_store &s = item.stores[0];
    alignas(64) float x[MAX];
    for (int64_t index = begin; index < end; index++) {
        const chunk c = chunk_at(item, s.block_size, index);
        float *out = item.out_type == LOWPREC_FLOAT32 ? (float *)item.out + c.at : x;
        decode(item, s, c, out);
        if (s.squared)
            for (int64_t j = 0; j < c.n; j++) out[j] = out[j] <= 1.84467429741979238e19f ? out[j] * out[j] : FLOAT_MAX;
        if (item.out_type == LOWPREC_BFLOAT16) store_bfloat16(x, c.n, (uint16_t *)item.out + c.at);
    }
}

static bool finite_chunks(const lowprec_item &item, int64_t begin, int64_t end) {
    const int64_t from = begin * LOWPREC_MAX_BLOCK;
    const int64_t n = smaller(end * LOWPREC_MAX_BLOCK, item.rows * item.row_length) - from;
    if (item.grad_type == LOWPREC_FLOAT32) return largest_bits((const float *)item.grad + from, n) < INFINITE;
    const uint16_t *__restrict h = (const uint16_t *)item.grad + from;
    const int32_t infinity = item.grad_type == LOWPREC_BFLOAT16 ? 0x7F80 : 0x7C00;
    int32_t largest = 0;
    for (int64_t j = 0; j < n; j++) {
        int32_t m = h[j] & 0x7FFF;
        largest = m > largest ? m : largest;
    }
    return largest < infinity;
}

}  // namespace LOWPREC_NAMESPACE

#define LOWPREC_TABLE(NAME) \
    extern const lowprec_kernels lowprec_kernels_##NAME = {#NAME, LOWPREC_NAMESPACE::quantize_chunks, LOWPREC_NAMESPACE::dequantize_chunks, LOWPREC_NAMESPACE::update_chunks, LOWPREC_NAMESPACE::finite_chunks};
