// The C interface of the native CPU kernels: pointers and sizes, no torch. Mirrored by library.py and wire.py of native/
#pragma once
#include <cstdint>

#define LOWPREC_API __attribute__((visibility("default")))

extern "C" {

enum { LOWPREC_ABI = 8, LOWPREC_HYPERS = 10, LOWPREC_STORES = 3, LOWPREC_MAX_BLOCK = 1024, LOWPREC_WIRE_BLOCK = 256 };
enum { LOWPREC_FLOAT32 = 0, LOWPREC_BFLOAT16 = 1, LOWPREC_FLOAT16 = 2, LOWPREC_FLOAT64 = 3 };  // float64: to round only
enum { LOWPREC_CODES = 4, LOWPREC_EXPONENTS = 5 };  // gradients in codes; their exponents, to be looked at

// One tensor's codes and exponents.
struct lowprec_store {
    void *codes;          // int8 up to 8 bits, else int16
    uint8_t *low;         // 17 to 24 bits: the lower plane; else null
    int8_t *exponents;    // one per block; null for a static format
    int32_t word_length;
    int32_t exponent;     // of a static format
    int32_t block_size;
    int32_t squared;
};

// What an update did to one parameter: lowprec_plugin.arithmetic.update_counts.UpdateCounts. What saturated is the item's.
struct lowprec_counts {
    int64_t elements, moved, lost, unchanged;
    double update_squares, error_squares;
};

// One tensor to convert, or one parameter to update.
struct lowprec_item {
    const void *grad;     // the gradient; or the floats to quantise; or null
    void *out;            // where dequantised floats go; or null
    const int32_t *bits;  // random bits to quantise with, in place of the key's; or null
    int64_t rows, row_length, first_row;
    uint64_t key;         // of the random bits
    int32_t grad_type, out_type;
    int64_t saturated;    // out: elements that were out of range
    int32_t refused;      // out: 1 if a NaN came up; the chunk it came up in was not written
    int32_t fresh;        // of a gradient that is gathered: what the codes hold is not added to
    float hyper[LOWPREC_HYPERS];
    float factor;         // what a gradient in codes is multiplied by
    int32_t reserved;
    lowprec_store gradient;                // if it is in codes, in blocks like the parameter's
    lowprec_store stores[LOWPREC_STORES];  // the parameter and its state
    lowprec_counts *counts;                // to be added to by an update; or null: nothing is counted
};

// A run of whole wire blocks of one gradient (or, in a sum, of the mean's); the last may end early.
struct lowprec_piece {
    void *values;                // the gradient, read or written
    int8_t *residual_codes;      // 8-bit codes and exponents of what earlier roundings lost; or null
    int8_t *residual_exponents;
    int64_t elements;
    int64_t first_block;         // its place in the whole gradient: of the random bits
    int64_t place;               // its place in the chunk
    uint64_t key;
    int32_t type;
    int32_t reserved;
};

// A chunk of packed blocks that goes to one rank, or the same chunk from each of several ranks.
struct lowprec_wire {
    uint8_t *codes;
    int8_t *exponents;
    uint8_t *out_codes;          // of a sum
    int8_t *out_exponents;
    int64_t stride;              // bytes from one rank's chunk to the next one's
    float divisor;               // what a sum is divided by
    int32_t ranks;
    int32_t word_length;
    int32_t stochastic;
};

LOWPREC_API int32_t lowprec_abi(void);
LOWPREC_API const char *lowprec_isa(void);
LOWPREC_API int32_t lowprec_select(const char *isa);  // "baseline", "avx2", "avx512": 0 if this machine has it
LOWPREC_API void lowprec_quantize(lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads);
LOWPREC_API void lowprec_dequantize(lowprec_item *items, int64_t count, int32_t threads);
LOWPREC_API void lowprec_gather(lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads);
LOWPREC_API double lowprec_squares(lowprec_item *item, int32_t threads);  // the sum of all, without factor
LOWPREC_API void lowprec_round(lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads);
LOWPREC_API const char *lowprec_formula(int32_t algorithm);  // "name/states(hyperparameters)"; null: there is none
// 0, or 1 if there is no formula of that number: then nothing is written.
LOWPREC_API int32_t lowprec_update(int32_t algorithm, lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads);
LOWPREC_API int64_t lowprec_first_nonfinite(const lowprec_item *items, int64_t count, int32_t threads);  // an index, or -1
LOWPREC_API void lowprec_wire_round(const lowprec_piece *pieces, int64_t count, const lowprec_wire *wire, int32_t threads);
LOWPREC_API void lowprec_wire_sum(const lowprec_piece *pieces, int64_t count, const lowprec_wire *wire, int32_t threads);
LOWPREC_API void lowprec_wire_read(const lowprec_piece *pieces, int64_t count, const lowprec_wire *wire, int32_t threads);
}

// What one instruction set provides. `chunk` elements at a time; see kernels.inl.
struct lowprec_kernels {
    const char *name;
    void (*quantize)(lowprec_item &, int64_t begin, int64_t end, bool stochastic);
    void (*dequantize)(lowprec_item &, int64_t begin, int64_t end);
    void (*gather)(lowprec_item &, int64_t begin, int64_t end, bool stochastic);
    double (*squares)(const lowprec_item &, int64_t begin, int64_t end);
    void (*round)(lowprec_item &, int64_t begin, int64_t end, bool stochastic);
    const char *(*formula)(int32_t algorithm);
    void (*update)(int32_t algorithm, lowprec_item &, int64_t begin, int64_t end, bool stochastic);
    bool (*finite)(const lowprec_item &, int64_t begin, int64_t end);
    void (*wire_round)(const lowprec_piece &, int64_t begin, int64_t end, const lowprec_wire &);
    void (*wire_sum)(const lowprec_piece &, int64_t begin, int64_t end, const lowprec_wire &);
    void (*wire_read)(const lowprec_piece &, int64_t begin, int64_t end, const lowprec_wire &);
};
