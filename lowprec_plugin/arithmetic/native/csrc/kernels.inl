// The kernels, compiled once per instruction set (LOWPREC_NAMESPACE) with that set's flags.
//
// A tensor is worked through in chunks that fit the first-level cache: one block of a row, or as many whole rows as
// fill a block where rows are narrow. Per chunk: decode to floats, update, encode. Everything is `static` and free of
// library templates, so that no function compiled for a newer machine can be linked into the path of an older one.
// Compiled without contraction or reassociation: the results are those of ../../reference, bit for bit.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "lowprec.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 4")  // or the tensors' vectors live in memory
#endif

namespace LOWPREC_NAMESPACE {

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));

enum : uint32_t { INFINITE = 0x7F800000u };  // the bits of a float; a NaN's are above
enum { MAX = LOWPREC_MAX_BLOCK, MIN_EXPONENT = -110, GROUP = 16, AHEAD = 2048 };
// The exponent of a block that holds a NaN or an infinity. Its codes are 0, and power_of_two of it is minus infinity, so
// that they decode to NaN as any others decode to numbers.
enum { NOT_FINITE = -128 };

static const float FLOAT_MAX = 3.40282347e38f;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t n) { return (n + GROUP - 1) / GROUP * GROUP; }

static inline float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint32_t bits_of(float f) {
    uint32_t b;
    memcpy(&b, &f, 4);
    return b;
}

static inline float power_of_two(int32_t e) { return float_of((uint32_t)(e + 127) << 23); }

// ---------------------------------------------------------------------------------------------------- random bits

struct key32 {
    uint32_t first, second;
};

// The key with the upper half of a 64-bit counter folded in: random_bits.hash32.
static inline key32 key_at(uint64_t key, uint64_t counter) {
    return {(uint32_t)key + (uint32_t)(counter >> 32) * 0x9E3779B9u, (uint32_t)(key >> 32)};
}

// hash32 in two parts: the first is the same for all tensors that are rounded with one key.
static const struct {
    int shift;
    uint32_t multiplier;
} ROLES[3] = {{15, 0x846CA68Bu}, {14, 0x85EBCA6Bu}, {17, 0xC2B2AE35u}};

template <typename V>
static inline V mix(V x, V first, V second) {
    x ^= first;
    return (x ^ (x >> 16)) * 0x7FEB352Du + second;
}

template <typename V>
static inline V word_of(V mixed, int shift, V multiplier) {
    mixed = (mixed ^ (mixed >> shift)) * multiplier;
    return mixed ^ (mixed >> 16);
}

// The first part for a block of n elements whose first one has this counter: a word for two elements.
static void mix_words(uint64_t key, uint64_t counter, int64_t n, uint32_t *__restrict out) {
    const key32 k = key_at(key, counter);
    const u8 first = u8{} + k.first, second = u8{} + k.second;
    u8 lane = u8{0, 1, 2, 3, 4, 5, 6, 7} + (uint32_t)counter;
    for (int64_t j = 0; j < n; j += GROUP, lane += 8) {
        const u8 mixed = mix(lane, first, second);
        memcpy(out + j / 2, &mixed, 32);
    }
}

// Where a block's random bits come from: given, or hashed from the counter of its first element; `mixed` are the
// block's mix_words, where it has but one upper half of a counter.
struct randomness {
    const int32_t *given;
    const uint32_t *mixed;
    uint64_t key, counter;
    int role;
    bool stochastic;

    uint32_t at(int64_t j) const {
        if (given) return (uint32_t)given[j];
        const uint64_t c = counter + (uint64_t)(j / GROUP) * 8 + (uint64_t)(j % 8);
        const key32 k = key_at(key, c);
        return word_of(mix((uint32_t)c, k.first, k.second), ROLES[role].shift, ROLES[role].multiplier) >> (j / 8 % 2 * 16) & 0xFFFFu;
    }
};

// Whether a block's counters have one upper half.
static inline bool one_key(uint64_t counter, int64_t n) {
    return counter >> 32 == (counter + (uint64_t)padded(n) / 2 - 1) >> 32;
}

// ------------------------------------------------------------------------------------------------- floats in and out

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
    if (magnitude >= 0x7C00u) return float_of(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
    // A float 2**112 too small, denormals included.
    const float f = float_of(magnitude << 13) * 5192296858534827628530496329220096.0f;
    return sign ? -f : f;
}

static void load_floats(const void *source, int32_t type, int64_t at, int64_t n, float *__restrict out) {
    if (type == LOWPREC_FLOAT32) {
        memcpy(out, (const float *)source + at, (size_t)n * 4);
    } else if (type == LOWPREC_BFLOAT16) {
        const uint16_t *__restrict s = (const uint16_t *)source + at;
        for (int64_t j = 0; j < n; j++) out[j] = float_of((uint32_t)s[j] << 16);
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

// Ties to even; what is out of range, and NaN, becomes INT32_MIN.
static inline i8 round_to_int(f8 x) {
#if defined(__AVX2__)
    return (i8)_mm256_cvtps_epi32((__m256)x);
#else
    i8 r;
    for (int j = 0; j < 8; j++)
        r[j] = x[j] >= -2147483648.0f && x[j] < 2147483648.0f ? (int32_t)lrintf(x[j]) : INT32_MIN;
    return r;
#endif
}

static inline int32_t clamp(int32_t v, int32_t low, int32_t high) { return v < low ? low : v > high ? high : v; }

typedef int16_t h16 __attribute__((vector_size(32)));
typedef uint16_t q16 __attribute__((vector_size(32)));

// Sixteen integers to 16 bits, saturating.
static inline h16 pack(i8 a, i8 b) {
#if defined(__AVX2__)
    return (h16)_mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a, (__m256i)b), 0xD8);
#else
    h16 r;
    for (int j = 0; j < 8; j++) r[j] = (int16_t)clamp(a[j], -32768, 32767);
    for (int j = 0; j < 8; j++) r[8 + j] = (int16_t)clamp(b[j], -32768, 32767);
    return r;
#endif
}

static inline q16 larger(q16 a, q16 b) {
#if defined(__AVX2__)
    return (q16)_mm256_max_epu16((__m256i)a, (__m256i)b);
#else
    return a > b ? a : b;
#endif
}

static inline h16 smaller(h16 a, h16 b) {
#if defined(__AVX2__)
    return (h16)_mm256_min_epi16((__m256i)a, (__m256i)b);
#else
    return a < b ? a : b;
#endif
}

// The larger of `top` and the magnitude of `code`; that of -32768 is 32768.
static inline q16 larger_magnitude(q16 top, h16 code) {
#if defined(__AVX2__)
    return larger(top, (q16)_mm256_abs_epi16((__m256i)code));
#else
    const h16 negated = (h16)(q16{} - (q16)code);  // unsigned, for that of -32768 wraps to itself
    return larger(top, (q16)(code > negated ? code : negated));
#endif
}

static inline void store_group(h16 code, int16_t *out) { memcpy(out, &code, 32); }

static inline void store_group(h16 code, int8_t *out) {
#if defined(__AVX2__)
    const __m256i c = (__m256i)code;
    _mm_storeu_si128((__m128i *)out, _mm_packs_epi16(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1)));
#else
    for (int j = 0; j < GROUP; j++) out[j] = (int8_t)clamp(code[j], -128, 127);
#endif
}

// Codes of up to 16 bits, random bits hashed, straight into their container. x is padded to whole groups with zeros.
// Returns the largest magnitude of a code, which is above 2**(word_length - 1) - 1 if some number was out of range
// (its code then is worth nothing). A number far out of range becomes INT32_MIN in the conversion, and so 32768.
template <typename T, bool STOCHASTIC, bool SQUARED>
static int32_t round_into(const float *__restrict x, int64_t n, int32_t exponent, const randomness &random,
                          T *__restrict out) {
    const float scale = power_of_two(STOCHASTIC ? 16 - exponent : -exponent);
    const u8 multiplier = u8{} + ROLES[random.role].multiplier;
    const int shift = ROLES[random.role].shift;
    q16 top = q16{};
    alignas(32) T last[GROUP];
    for (int64_t j = 0; j < n; j += GROUP) {
        f8 a, b;
        memcpy(&a, x + j, 32);
        memcpy(&b, x + j + 8, 32);
        i8 ca = round_to_int(a * scale), cb = round_to_int(b * scale);
        if (STOCHASTIC) {
            u8 word;
            memcpy(&word, random.mixed + j / 2, 32);
            word = word_of(word, shift, multiplier);
            // Unsigned, for a sum past the largest integer wraps: to a code of about -32768, whose magnitude tells.
            ca = (i8)((u8)ca + (word & 0xFFFFu)) >> 16;
            cb = (i8)((u8)cb + (word >> 16)) >> 16;
        }
        h16 code = pack(ca, cb);
        if (SQUARED)  // a root is never negative, and code 0 is for zero alone; unsigned, so that 32768 stays
            code = (h16)larger((q16)code, (q16)smaller(pack((i8)a, (i8)b), h16{} + 1));
        top = larger_magnitude(top, code);
        if (n - j >= GROUP) {
            store_group(code, out + j);
        } else {
            store_group(code, last);
            memcpy(out + j, last, (size_t)(n - j) * sizeof(T));
        }
    }
    int32_t largest = 0;
    for (int j = 0; j < GROUP; j++) largest = top[j] > largest ? top[j] : largest;
    return largest;
}

template <typename T>
static int32_t round_into(const float *x, int64_t n, int32_t exponent, bool squared, const randomness &random, T *out) {
    if (random.stochastic)
        return squared ? round_into<T, true, true>(x, n, exponent, random, out)
                       : round_into<T, true, false>(x, n, exponent, random, out);
    return squared ? round_into<T, false, true>(x, n, exponent, random, out)
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

static inline i8 larger(i8 a, i8 b) {
#if defined(__AVX2__)
    return (i8)_mm256_max_epi32((__m256i)a, (__m256i)b);
#else
    return a > b ? a : b;
#endif
}

static uint32_t largest_bits(const float *x, int64_t n) {
    i8 top[4] = {};  // several at a time: a maximum waits for the one before
    int64_t j = 0;
    for (; j + 32 <= n; j += 32)
        UNROLL for (int k = 0; k < 4; k++) {
            i8 bits;
            memcpy(&bits, x + j + 8 * k, 32);
            top[k] = larger(top[k], bits & 0x7FFFFFFF);
        }
    const i8 last = larger(larger(top[0], top[1]), larger(top[2], top[3]));
    uint32_t largest = 0;
    for (int k = 0; k < 8; k++) largest = (uint32_t)last[k] > largest ? (uint32_t)last[k] : largest;
    for (; j < n; j++) {
        const uint32_t m = bits_of(x[j]) & 0x7FFFFFFFu;
        largest = m > largest ? m : largest;
    }
    return largest;
}

// After rounding, the exponent is still the smallest: where rounding down has left room, the codes are doubled.
// `top` is the largest magnitude among the codes.
template <typename T>
static int32_t normalize(T *__restrict code, int64_t n, int32_t top, int32_t max_code, int32_t exponent) {
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

// Takes a static format's numbers into its range, infinities included. Returns how many were out of it.
static int64_t clamp_block(float *__restrict x, int64_t n, int32_t exponent, int32_t max_code) {
    const float high = (float)max_code * power_of_two(exponent);
    const float low = -(float)(max_code + 1) * power_of_two(exponent);  // -infinity in the widest format: then no bound
    const float lowest = low < -FLOAT_MAX ? -FLOAT_MAX : low;
    int32_t saturated = 0;
    for (int64_t j = 0; j < n; j++) {
        const float v = x[j];
        saturated += (int32_t)(v > high) | (int32_t)(v < low);
        x[j] = v > high ? high : v < lowest ? lowest : v;
    }
    return saturated;
}

// Rounds one block and writes it. x is padded to whole groups with zeros, and may be changed; `largest` is
// largest_bits(x, n). Returns how many saturated.
static int64_t encode_block(const lowprec_store &s, int64_t at, int64_t n, int8_t *exponent_out, float *x,
                            uint32_t largest, randomness random) {
    alignas(64) int32_t code[MAX];
    const int32_t max_code = (1 << (s.word_length - 1)) - 1;
    const bool fast = s.word_length <= 16 && (!random.stochastic || (!random.given && one_key(random.counter, n)));
    alignas(64) uint32_t mixed[MAX / 2];
    if (fast && random.stochastic && !random.mixed) {
        mix_words(random.key, random.counter, n, mixed);
        random.mixed = mixed;
    }
    if (!exponent_out) {
        if (!fast) {
            const int64_t saturated = round_block_wide(x, n, s.exponent, -max_code - 1, max_code, random, code);
            store_codes(s, at, n, code);
            return saturated;
        }
        const int64_t saturated = clamp_block(x, n, s.exponent, max_code);
        if (s.word_length > 8)
            round_into(x, n, s.exponent, false, random, (int16_t *)s.codes + at);
        else
            round_into(x, n, s.exponent, false, random, (int8_t *)s.codes + at);
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
    if (fast && e < max_exponent(s.word_length)) {
        if (s.word_length > 8) {
            int16_t *out = (int16_t *)s.codes + at;
            const int32_t top = round_into(x, n, e, s.squared, random, out);
            if (doubtful) e = normalize(out, n, top, max_code, e);
        } else {
            int8_t *out = (int8_t *)s.codes + at;
            const int32_t top = round_into(x, n, e, s.squared, random, out);
            if (doubtful) e = normalize(out, n, top, max_code, e);
        }
    } else {
        saturated = round_block_wide(x, n, e, -max_code, max_code, random, code);
        if (s.squared)
            for (int64_t j = 0; j < n; j++) code[j] += (code[j] == 0) & (x[j] > 0);
        if (doubtful) {
            int32_t top = 0;
            for (int64_t j = 0; j < n; j++) {
                const int32_t m = code[j] < 0 ? -code[j] : code[j];
                top = m > top ? m : top;
            }
            e = normalize(code, n, top, max_code, e);
        }
        store_codes(s, at, n, code);
    }
    *exponent_out = (int8_t)e;
    return saturated;
}

// Consecutive blocks of a single element each in a format of up to 16 bits, their exponents from exponent_out on.
static int64_t encode_single_elements(const lowprec_store &s, int64_t at, int64_t n, int8_t *exponent_out,
                                      const float *x, bool stochastic, uint64_t key, uint64_t counter, int role) {
    alignas(64) int32_t code[MAX];
    const int32_t max_code = (1 << (s.word_length - 1)) - 1;
    int64_t saturated = 0;
    for (int64_t j = 0; j < n; j++) {
        uint32_t magnitude = bits_of(x[j]) & 0x7FFFFFFFu;
        magnitude = magnitude > 0x7F7FFFFFu ? 0x7F7FFFFFu : magnitude;
        bool carry;
        int32_t e = exponent_for(magnitude, s.word_length, carry);
        float v = float_of(magnitude);
        v = x[j] < 0 ? -v : v;
        const float limit = (float)max_code * power_of_two(e);  // binding at the largest exponent only
        saturated += v > limit || v < -limit;
        v = v > limit ? limit : v < -limit ? -limit : v;
        int32_t c;
        if (stochastic) {
            const uint64_t at_counter = counter + (uint64_t)j * 8;
            const key32 k = key_at(key, at_counter);
            const uint32_t mixed = mix((uint32_t)at_counter, k.first, k.second);
            const uint32_t r = word_of(mixed, ROLES[role].shift, ROLES[role].multiplier) & 0xFFFFu;
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
    int64_t block;         // its first block: the index of that one's exponent
    int64_t block_length;  // n, unless it holds several rows
    uint64_t counter;      // of its first element's random bits
};

// The chunks of an item. What needs a division is found once: a division takes as long as updating five numbers.
struct chunks {
    int64_t rows, row_length, first_row, block_size, blocks_per_row, rows_per_chunk, half_row;

    explicit chunks(const lowprec_item &item)
        : rows(item.rows), row_length(item.row_length), first_row(item.first_row), block_size(item.stores[0].block_size),
          blocks_per_row((row_length + block_size - 1) / block_size),
          rows_per_chunk(row_length >= block_size || row_length == 0 ? 1 : block_size / row_length),
          half_row(padded(row_length) / 2) {}

    chunk at(int64_t index) const {
        chunk c;
        if (blocks_per_row > 1) {
            c.row = index / blocks_per_row;
            c.column = (index - c.row * blocks_per_row) * block_size;
            c.block = index;
            c.n = c.block_length = smaller(block_size, row_length - c.column);
        } else {
            c.row = c.block = index * rows_per_chunk;
            c.column = 0;
            c.block_length = row_length;
            c.n = smaller(rows_per_chunk, rows - c.row) * row_length;
        }
        c.at = c.row * row_length + c.column;
        c.counter = ((uint64_t)first_row + (uint64_t)c.row) * (uint64_t)half_row + (uint64_t)c.column / 2;  // wraps
        return c;
    }
};

static void decode(const lowprec_store &s, const chunk &c, float *out) {
    if (!s.exponents) return decode_block(s, c.at, c.n, s.exponent, out);
    const int8_t *e = s.exponents + c.block;
    if (c.block_length == 1 && !s.low) {
        if (s.word_length > 8)
            for (int64_t j = 0; j < c.n; j++) out[j] = (float)((const int16_t *)s.codes)[c.at + j] * power_of_two(e[j]);
        else
            for (int64_t j = 0; j < c.n; j++) out[j] = (float)((const int8_t *)s.codes)[c.at + j] * power_of_two(e[j]);
        return;
    }
    for (int64_t j = 0; j < c.n; j += c.block_length) decode_block(s, c.at + j, c.block_length, *e++, out + j);
}

static int64_t encode(const lowprec_item &item, int role, const chunk &c, float *x, uint32_t largest,
                      bool stochastic) {
    const lowprec_store &s = item.stores[role];
    uint64_t counter = c.counter;
    int8_t *e = s.exponents ? s.exponents + c.block : nullptr;
    if (c.block_length == 1 && e && s.word_length > 2 && s.word_length <= 16 && !item.bits) {
        return encode_single_elements(s, c.at, c.n, e, x, stochastic, item.key, counter, role);
    }
    if (c.block_length == c.n) {
        for (int64_t j = c.n; j < padded(c.n); j++) x[j] = 0;
        return encode_block(s, c.at, c.n, e, x, largest,
                            {item.bits ? item.bits + c.at : nullptr, nullptr, item.key, counter, role, stochastic});
    }
    int64_t saturated = 0;
    alignas(64) float row[MAX];
    for (int64_t j = 0; j < c.n; j += c.block_length, counter += (uint64_t)padded(c.block_length) / 2) {
        memcpy(row, x + j, (size_t)c.block_length * 4);
        for (int64_t k = c.block_length; k < padded(c.block_length); k++) row[k] = 0;
        const randomness random = {item.bits ? item.bits + c.at + j : nullptr, nullptr, item.key, counter, role,
                                   stochastic};
        saturated += encode_block(s, c.at + j, c.block_length, e, row, largest_bits(row, c.block_length), random);
        if (e) e++;
    }
    return saturated;
}

#include "counts.inl"

// ----------------------------------------------------------------------------------------------------------- updates

// Each formula of formulas.py on eight numbers at a time: v[0] is the parameter, v[1] and v[2] its state. In two halves
// where one would be a chain of long operations: a processor sees few steps ahead, and would wait for each chain.
static inline f8 square_root(f8 x) {
#if defined(__AVX2__)
    return (f8)_mm256_sqrt_ps((__m256)x);
#else
    for (int j = 0; j < 8; j++) x[j] = sqrtf(x[j]);
    return x;
#endif
}
static inline f8 sign_of(f8 x) { return __builtin_convertvector((x < 0) - (x > 0), f8); }  // true is -1

// What a formula is: the number, the count of states and the names of hyperparameters of its record in formulas.py,
// with which declared() is compared when the library is loaded. h has the hyperparameters at the places of their names.
#define FORMULA(NAME, N, M, ...)                                      \
    enum { NUMBER = N, STATES = M };                                  \
    enum { __VA_ARGS__, HYPERS };                                     \
    static_assert(1 + STATES <= LOWPREC_STORES, #NAME);               \
    static_assert((int)HYPERS <= (int)LOWPREC_HYPERS, #NAME);         \
    static const char *declared() { return #NAME "/" #M "(" #__VA_ARGS__ ")"; }

struct sgd {
    FORMULA(sgd, 0, 0, sign, l2, lr)
    enum { HALVES = 1, LATE = 0 };
    static inline void first(const f8 *h, f8 g, f8 *v) {
        const f8 d = g * h[sign] + v[0] * h[l2];
        v[0] = v[0] - d * h[lr];
    }
    static inline void second(const f8 *, f8 *) {}
};

struct momentum {
    FORMULA(momentum, 1, 1, sign, l2, lr, mu, fresh, direct, through)
    enum { HALVES = 1, LATE = 0 };
    static inline void first(const f8 *h, f8 g, f8 *v) {
        const f8 d = g * h[sign] + v[0] * h[l2];
        v[1] = v[1] * h[mu] + d * h[fresh];
        v[0] = v[0] - (d * h[direct] + v[1] * h[through]) * h[lr];
    }
    static inline void second(const f8 *, f8 *) {}
};

template <bool PLAIN>  // neither maximize nor an L2 term: the parameter is needed late
struct adam_with {
    FORMULA(adam, 2, 2, sign, l2, step_size, decay, one_minus_beta1, beta2, one_minus_beta2, correction, eps)
    enum { HALVES = 2, LATE = PLAIN };
    static inline void first(const f8 *h, f8 g, f8 *v) {
        const f8 d = PLAIN ? g : g * h[sign] + v[0] * h[l2];
        v[1] = v[1] + (d - v[1]) * h[one_minus_beta1];
        v[2] = square_root((v[2] * v[2]) * h[beta2] + (d * d) * h[one_minus_beta2]);
    }
    static inline void second(const f8 *h, f8 *v) {
        v[0] = v[0] - ((v[1] / (v[2] * h[correction] + h[eps])) * h[step_size] + v[0] * h[decay]);
    }
};
typedef adam_with<false> adam;

struct lion {
    FORMULA(lion, 3, 1, sign, lr, decay, one_minus_beta1, one_minus_beta2)
    enum { HALVES = 1, LATE = 0 };
    static inline void first(const f8 *h, f8 g, f8 *v) {
        const f8 d = g * h[sign];
        const f8 direction = sign_of(v[1] + (d - v[1]) * h[one_minus_beta1]);
        v[0] = v[0] - (direction * h[lr] + v[0] * h[decay]);
        v[1] = v[1] + (d - v[1]) * h[one_minus_beta2];
    }
    static inline void second(const f8 *, f8 *) {}
};

struct rmsprop {
    FORMULA(rmsprop, 4, 1, sign, l2, lr, alpha, one_minus_alpha, eps)
    enum { HALVES = 1, LATE = 0 };
    static inline void first(const f8 *h, f8 g, f8 *v) {
        const f8 d = g * h[sign] + v[0] * h[l2];
        v[1] = square_root((v[1] * v[1]) * h[alpha] + (d * d) * h[one_minus_alpha]);
        v[0] = v[0] - (d / (v[1] + h[eps])) * h[lr];
    }
    static inline void second(const f8 *, f8 *) {}
};

// All of them: an update is looked up here by its number.
#define FORMULAS(X) X(sgd) X(momentum) X(adam) X(lion) X(rmsprop)

typedef float values[LOWPREC_STORES][MAX + 32];  // 32: they do not share the sets of a cache

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

// One half of a formula on decoded numbers, in place, in whole vectors: what lies behind n is worked on too, and is
// of no use. The second half needs no gradient.
template <typename RULE, int HALF>
static void apply_to(const float *hyper, const float *__restrict grad, int64_t n, values &value) {
    enum { N = 1 + RULE::STATES };
    f8 h[LOWPREC_HYPERS];
    for (int k = 0; k < LOWPREC_HYPERS; k++) h[k] = f8{} + hyper[k];
    for (int64_t j = 0; j < n; j += 8) {
        f8 g, v[N];
        UNROLL for (int k = 0; k < N; k++) memcpy(&v[k], value[k] + j, 32);
        if (HALF == 1) {
            memcpy(&g, grad + j, 32);
            RULE::first(h, g, v);
        } else {
            RULE::second(h, v);
        }
        UNROLL for (int k = 0; k < N; k++) memcpy(value[k] + j, &v[k], 32);
    }
}

// An address that may lie behind the end of what `start` points into, where no pointer may.
static inline const void *beyond(const void *start, int64_t bytes) {
    return (const void *)((uintptr_t)start + (uintptr_t)bytes);
}

// The formula on the codes of one block, of types W (the parameter's) and S (its state's).
template <typename RULE, typename W, typename S>
static void decode_and_apply(const lowprec_item &item, const chunk &c, const float *__restrict grad, values &value) {
    enum { N = 1 + RULE::STATES };
    f8 h[LOWPREC_HYPERS], scale[N];
    for (int k = 0; k < LOWPREC_HYPERS; k++) h[k] = f8{} + item.hyper[k];
    UNROLL for (int k = 0; k < N; k++) scale[k] = f8{} + power_of_two(item.stores[k].exponents[c.block]);
    const W *parameter = (const W *)item.stores[0].codes + c.at;
    for (int64_t j = 0; j < c.n; j += 8) {
        f8 g, v[N];
        if (j % 32 == 0) {  // a page ahead, where the hardware does not look
            UNROLL for (int k = 0; k < N; k++) {
                const int64_t size = k ? sizeof(S) : sizeof(W);
                __builtin_prefetch(beyond(item.stores[k].codes, (c.at + j + AHEAD) * size), 1);
            }
            __builtin_prefetch(beyond(grad + j, AHEAD * 4));
            __builtin_prefetch(beyond(grad + j, (AHEAD + 16) * 4));
        }
        memcpy(&g, grad + j, 32);
        if (!RULE::LATE) v[0] = load_codes(parameter + j) * scale[0];
        UNROLL for (int k = 1; k < N; k++) v[k] = load_codes((const S *)item.stores[k].codes + c.at + j) * scale[k];
        RULE::first(h, g, v);
        UNROLL for (int k = RULE::LATE; k < N; k++) memcpy(value[k] + j, &v[k], 32);
    }
    if (RULE::HALVES == 1) return;
    for (int64_t j = 0; j < c.n; j += 8) {
        f8 v[N];
        UNROLL for (int k = RULE::LATE; k < N; k++) memcpy(&v[k], value[k] + j, 32);
        if (RULE::LATE) v[0] = load_codes(parameter + j) * scale[0];
        RULE::second(h, v);
        memcpy(value[0] + j, &v[0], 32);
    }
}

// A block's codes on the guess that its exponent stays: most often it does. False if that is not beyond doubt.
static bool round_guessing(const lowprec_store &s, const float *x, int64_t n, int32_t exponent,
                           const randomness &random, int16_t *code) {
    const int32_t half = 1 << (s.word_length - 2);
    if (exponent == MIN_EXPONENT || exponent >= max_exponent(s.word_length)) return false;
    const int32_t top = s.word_length > 8 ? round_into(x, n, exponent, s.squared, random, code)
                                          : round_into(x, n, exponent, s.squared, random, (int8_t *)code);
    if (top > half && top < 2 * half - 1) return true;  // no rounding takes a number that far
    if (top < half || top >= 2 * half) return false;
    bool carry;
    return exponent_for(largest_bits(x, n), s.word_length, carry) == exponent && !carry;
}

// Whether all formats of an item are dynamic and of one plane, and its state of one container.
template <typename RULE>
static bool one_code_each(const lowprec_item &item) {
    for (int k = 0; k <= RULE::STATES; k++)
        if (!item.stores[k].exponents || item.stores[k].low) return false;
    return RULE::STATES < 2 || (item.stores[1].word_length > 8) == (item.stores[2].word_length > 8);
}

static void load_gradient(const lowprec_item &item, const chunk &c, float *__restrict out) {
    if (item.grad_type != LOWPREC_CODES) return load_floats(item.grad, item.grad_type, c.at, c.n, out);
    decode(item.gradient, c, out);
    for (int64_t j = 0; item.factor != 1 && j < c.n; j++) out[j] *= item.factor;
}

template <typename RULE, bool STOCHASTIC>
static void update_with(lowprec_item &item, int64_t begin, int64_t end) {
    enum { N = 1 + RULE::STATES };
    alignas(64) float padded_grad[MAX + 8];
    alignas(64) values value;
    alignas(64) int16_t code[N][MAX];
    alignas(64) uint32_t mixed[MAX / 2];
    counter counter;
    if (item.counts) counter.start();
    const bool wide_word = item.stores[0].word_length > 8, wide_state = N > 1 && item.stores[1].word_length > 8;
    const bool codes_are_simple = one_code_each<RULE>(item);
    int64_t saturated = 0;
    const chunks all_chunks(item);
    for (int64_t index = begin; index < end; index++) {
        const chunk c = all_chunks.at(index);
        const float *grad = (const float *)item.grad + c.at;
        if (item.grad_type != LOWPREC_FLOAT32 || c.n % 8) {
            load_gradient(item, c, padded_grad);
            for (int64_t j = c.n; j % 8; j++) padded_grad[j] = 0;
            grad = padded_grad;
        }
        const bool whole = c.n == c.block_length && c.n % GROUP == 0 && one_key(c.counter, c.n);
        if (whole && codes_are_simple) {
            if (wide_word)
                wide_state ? decode_and_apply<RULE, int16_t, int16_t>(item, c, grad, value)
                           : decode_and_apply<RULE, int16_t, int8_t>(item, c, grad, value);
            else
                wide_state ? decode_and_apply<RULE, int8_t, int16_t>(item, c, grad, value)
                           : decode_and_apply<RULE, int8_t, int8_t>(item, c, grad, value);
        } else {
            for (int k = 0; k < N; k++) {
                decode(item.stores[k], c, value[k]);
                for (int64_t j = c.n; j % 8; j++) value[k][j] = 0;
            }
            apply_to<RULE, 1>(item.hyper, grad, c.n, value);
            if (RULE::HALVES == 2) apply_to<RULE, 2>(item.hyper, nullptr, c.n, value);
        }
        bool stays[N], all = true;
        if (whole && STOCHASTIC) mix_words(item.key, c.counter, c.n, mixed);
        for (int k = 0; k < N; k++) {
            const lowprec_store &s = item.stores[k];
            stays[k] = whole && s.exponents && s.word_length <= 16 &&
                       round_guessing(s, value[k], c.n, s.exponents[c.block],
                                      {nullptr, mixed, item.key, c.counter, k, STOCHASTIC}, code[k]);
            all &= stays[k];
        }
        uint32_t largest[N];
        if (!all) {
            bool nan = false;
            for (int k = 0; k < N; k++) nan |= (largest[k] = largest_bits(value[k], c.n)) > INFINITE;
            if (nan) {
                __atomic_store_n(&item.refused, 1, __ATOMIC_RELAXED);
                continue;
            }
        }
        if (item.counts) counter.read(item.stores[0], c, value[0]);
        for (int k = 0; k < N; k++) {
            const lowprec_store &s = item.stores[k];
            const int64_t size = s.word_length > 8 ? 2 : 1;
            if (stays[k])
                memcpy((char *)s.codes + c.at * size, code[k], (size_t)(c.n * size));
            else
                saturated += encode(item, k, c, value[k], largest[k], STOCHASTIC);
        }
        if (item.counts) counter.count(item.stores[0], c);
    }
    if (item.counts) counter.add_to(*item.counts);
    __atomic_fetch_add(&item.saturated, saturated, __ATOMIC_RELAXED);
}

template <typename RULE>
static void update_with(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    stochastic ? update_with<RULE, true>(item, begin, end) : update_with<RULE, false>(item, begin, end);
}

template <typename RULE>
static void update_by(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    update_with<RULE>(item, begin, end, stochastic);
}

template <>
void update_by<adam>(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    item.hyper[adam::sign] == 1 && item.hyper[adam::l2] == 0 ? update_with<adam_with<true>>(item, begin, end, stochastic)
                                                             : update_with<adam>(item, begin, end, stochastic);
}

static const char *formula(int32_t algorithm) {
    switch (algorithm) {
#define DECLARED(RULE) case RULE::NUMBER: return RULE::declared();
        FORMULAS(DECLARED)
        default: return nullptr;
    }
}

static void update_chunks(int32_t algorithm, lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    switch (algorithm) {
#define UPDATED(RULE) case RULE::NUMBER: return update_by<RULE>(item, begin, end, stochastic);
        FORMULAS(UPDATED)
        default: __builtin_trap();  // lowprec_update has refused it
    }
}

static void quantize_chunks(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    const lowprec_store &s = item.stores[0];
    alignas(64) float x[MAX];
    int64_t saturated = 0;
    const chunks all_chunks(item);
    for (int64_t index = begin; index < end; index++) {
        const chunk c = all_chunks.at(index);
        load_floats(item.grad, item.grad_type, c.at, c.n, x);
        if (s.squared)
            for (int64_t j = 0; j < c.n; j++) x[j] = sqrtf(x[j]);
        saturated += encode(item, 0, c, x, largest_bits(x, c.n), stochastic);
    }
    __atomic_fetch_add(&item.saturated, saturated, __ATOMIC_RELAXED);
}

// Adds floats to what the codes hold, unless there is nothing yet, and marks blocks that come to what is not finite.
static void gather_chunks(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    const lowprec_store &s = item.stores[0];
    alignas(64) float x[MAX], before[MAX];
    const chunks all_chunks(item);
    for (int64_t index = begin; index < end; index++) {
        const chunk c = all_chunks.at(index);
        if (item.fresh && item.grad_type == LOWPREC_FLOAT32 && c.n == c.block_length && c.n % GROUP == 0) {
            float *grad = (float *)item.grad + c.at;  // read where it is; it is not written to
            for (int64_t j = 0; j < c.n; j += 16) __builtin_prefetch(beyond(grad + j, AHEAD * 4));
            const uint32_t largest = largest_bits(grad, c.n);
            if (largest < INFINITE) {
                encode(item, 0, c, grad, largest, stochastic);
                continue;
            }
        }
        load_floats(item.grad, item.grad_type, c.at, c.n, x);
        if (!item.fresh) {
            decode(s, c, before);
            for (int64_t j = 0; j < c.n; j++) x[j] = before[j] * item.factor + x[j];
        }
        uint32_t largest = largest_bits(x, c.n);
        const bool finite = largest < INFINITE;
        alignas(64) bool marked[MAX];
        if (!finite) {
            for (int64_t j = 0; j < c.n; j += c.block_length) {
                marked[j] = largest_bits(x + j, c.block_length) >= INFINITE;
                for (int64_t i = j; marked[j] && i < j + c.block_length; i++) x[i] = 0;
            }
            largest = largest_bits(x, c.n);
        }
        encode(item, 0, c, x, largest, stochastic);
        for (int64_t j = 0, block = c.block; !finite && j < c.n; j += c.block_length, block++)
            if (marked[j]) s.exponents[block] = NOT_FINITE;
    }
}

// Of a block's codes the sum is exact, and so is its product with a power of two.
static double sum_of_squares(const lowprec_item &item, int64_t begin, int64_t end) {
    const lowprec_store &s = item.stores[0];
    const int shift = 24 - s.word_length;
    const chunks all_chunks(item);
    double total = 0;
    for (int64_t index = begin; index < end; index++) {
        const chunk c = all_chunks.at(index);
        for (int64_t j = 0, block = c.block; j < c.n; j += c.block_length, block++) {
            const int64_t at = c.at + j;
            int64_t sum = 0;
            if (s.low) {
                const int16_t *__restrict high = (const int16_t *)s.codes + at;
                for (int64_t i = 0; i < c.block_length; i++) {
                    const int64_t code = (high[i] * 256 + s.low[at + i]) >> shift;
                    sum += code * code;
                }
            } else if (s.word_length > 8) {
                const int16_t *__restrict code = (const int16_t *)s.codes + at;
                for (int64_t i = 0; i < c.block_length; i++) sum += (int64_t)((int32_t)code[i] * code[i]);
            } else {
                const int8_t *__restrict code = (const int8_t *)s.codes + at;
                int32_t small = 0;  // at most 1024 squares of at most 2**14
                for (int64_t i = 0; i < c.block_length; i++) small += (int32_t)code[i] * code[i];
                sum = small;
            }
            const double scale = (double)power_of_two(s.exponents[block]);
            total += (double)sum * (scale * scale);
        }
    }
    return total;
}

static void dequantize_chunks(lowprec_item &item, int64_t begin, int64_t end) {
    const lowprec_store &s = item.stores[0];
    alignas(64) float x[MAX];
    const chunks all_chunks(item);
    for (int64_t index = begin; index < end; index++) {
        const chunk c = all_chunks.at(index);
        float *out = item.out_type == LOWPREC_FLOAT32 ? (float *)item.out + c.at : x;
        decode(s, c, out);
        if (s.squared)
            for (int64_t j = 0; j < c.n; j++) out[j] = out[j] <= 1.84467429741979238e19f ? out[j] * out[j] : FLOAT_MAX;
        if (item.out_type == LOWPREC_BFLOAT16) store_bfloat16(x, c.n, (uint16_t *)item.out + c.at);
    }
}

// The random bits of one block, each by itself; `out` has room for whole groups.
static void draw(const randomness &random, int64_t n, int32_t *__restrict out) {
    if (random.given || !one_key(random.counter, n)) {
        for (int64_t j = 0; j < n; j++) out[j] = (int32_t)random.at(j);
        return;
    }
    alignas(64) uint32_t mixed[MAX / 2];
    mix_words(random.key, random.counter, n, mixed);
    const u8 multiplier = u8{} + ROLES[random.role].multiplier;
    for (int64_t j = 0; j < n; j += GROUP) {
        u8 word;
        memcpy(&word, mixed + j / 2, 32);
        word = word_of(word, ROLES[random.role].shift, multiplier);
        const u8 low = word & 0xFFFFu, high = word >> 16;
        memcpy(out + j, &low, 32);
        memcpy(out + j + 8, &high, 32);
    }
}

// Float64 to a static format of any width and to float32, as round_chunks; sums whose bits no float32 would hold.
template <bool STOCHASTIC>
static void round_doubles(lowprec_item &item, int64_t begin, int64_t end) {
    const lowprec_store &s = item.stores[0];
    // Added to a double of at most 2**51, this leaves an integer, ties to even.
    const double magic = 6755399441055744.0, infinity = __builtin_inf();
    const double unit = (double)power_of_two(s.exponent), scale = 1 / unit;
    const double low = -(double)(1 << (s.word_length - 1)), high = -low - 1;
    alignas(64) int32_t drawn[MAX + GROUP];
    int64_t saturated = 0;
    const chunks all_chunks(item);
    for (int64_t index = begin; index < end; index++) {
        const chunk c = all_chunks.at(index);
        const double *__restrict in = (const double *)item.grad + c.at;
        float *__restrict out = (float *)item.out + c.at;
        if (STOCHASTIC) {
            uint64_t counter = c.counter;
            for (int64_t j = 0; j < c.n; j += c.block_length, counter += (uint64_t)padded(c.block_length) / 2)
                draw({item.bits ? item.bits + c.at + j : nullptr, nullptr, item.key, counter, 0, true}, c.block_length,
                     drawn + j);
        }
        int32_t outside = 0;
        for (int64_t j = 0; j < c.n; j++) {
            const double given = in[j], size = given < 0 ? -given : given;
            double x = size < infinity ? given * scale : 0;
            outside += (int32_t)(x > high) | (int32_t)(x < low);
            x = x > high ? high : x < low ? low : x;
            double code;
            if (STOCHASTIC)
                code = __builtin_floor(((x * 65536.0 + magic) - magic + (double)drawn[j]) * (1 / 65536.0));
            else
                code = (x + magic) - magic;
            out[j] = (float)(size < infinity ? code * unit : given);
        }
        saturated += outside;
    }
    __atomic_fetch_add(&item.saturated, saturated, __ATOMIC_RELAXED);
}

// Floats to the format's nearest numbers and back to floats, chunk by chunk; of the store only its format is used, and
// that `exponents` is null for a static one. What is not finite passes through.
static void round_chunks(lowprec_item &item, int64_t begin, int64_t end, bool stochastic) {
    if (item.grad_type == LOWPREC_FLOAT64)
        return stochastic ? round_doubles<true>(item, begin, end) : round_doubles<false>(item, begin, end);
    alignas(64) float x[MAX];
    alignas(64) int16_t codes[MAX];
    alignas(64) uint8_t low[MAX];
    int8_t exponents[MAX];
    lowprec_item local = {};  // no copy of the item: other threads add to what saturated
    local.key = item.key;
    lowprec_store &s = local.stores[0] = item.stores[0];
    s.codes = codes;
    s.low = s.word_length > 16 ? low : nullptr;
    s.exponents = s.exponents ? exponents : nullptr;
    int64_t saturated = 0;
    const chunks all_chunks(item);
    for (int64_t index = begin; index < end; index++) {
        chunk c = all_chunks.at(index);
        const float *in = (const float *)item.grad + c.at;
        float *out = (float *)item.out + c.at;
        memcpy(x, in, (size_t)c.n * 4);
        uint32_t largest = largest_bits(x, c.n);
        const bool finite = largest < INFINITE;
        if (!finite) {
            for (int64_t j = 0; j < c.n; j++) x[j] = (bits_of(x[j]) & 0x7FFFFFFFu) < INFINITE ? x[j] : 0;
            largest = largest_bits(x, c.n);
        }
        local.bits = item.bits ? item.bits + c.at : nullptr;
        c.at = c.block = 0;
        saturated += encode(local, 0, c, x, largest, stochastic);
        decode(s, c, finite ? out : x);
        if (!finite)
            for (int64_t j = 0; j < c.n; j++) out[j] = (bits_of(in[j]) & 0x7FFFFFFFu) < INFINITE ? x[j] : in[j];
    }
    __atomic_fetch_add(&item.saturated, saturated, __ATOMIC_RELAXED);
}

static bool finite_chunks(const lowprec_item &item, int64_t begin, int64_t end) {
    const int64_t from = begin * LOWPREC_MAX_BLOCK;
    const int64_t n = smaller(end * LOWPREC_MAX_BLOCK, item.rows * item.row_length) - from;
    if (item.grad_type == LOWPREC_EXPONENTS) {
        const int8_t *__restrict exponent = (const int8_t *)item.grad + from;
        int8_t marked = 0;
        for (int64_t j = 0; j < n; j++) marked |= (int8_t)(exponent[j] == NOT_FINITE);
        return !marked;
    }
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
