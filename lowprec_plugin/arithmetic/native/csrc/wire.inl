// What crosses the network, included behind kernels.inl: blocks of WIRE_BLOCK consecutive elements of a gradient, each an
// exponent and packed codes. Laws: ../../reference/wire.py.

namespace LOWPREC_NAMESPACE {

enum { WIRE_BLOCK = LOWPREC_WIRE_BLOCK };

static inline int64_t packed_bytes(int32_t word_length) { return WIRE_BLOCK * word_length / 8; }

// The codes of one block, from their container to packed bytes; 16 and 8 bits are packed as they are.
static void pack_block(const void *container, int32_t word_length, uint8_t *__restrict out) {
    if (word_length == 12) {
        const int16_t *c = (const int16_t *)container;
        for (int j = 0; j < WIRE_BLOCK / 2; j++) {
            const uint32_t pair = ((uint32_t)c[2 * j] & 0xFFFu) | (uint32_t)c[2 * j + 1] << 12;
            out[3 * j] = (uint8_t)pair;
            out[3 * j + 1] = (uint8_t)(pair >> 8);
            out[3 * j + 2] = (uint8_t)(pair >> 16);
        }
    } else if (word_length == 4) {
        const uint8_t *c = (const uint8_t *)container;
        for (int j = 0; j < WIRE_BLOCK / 2; j++) out[j] = (uint8_t)((c[2 * j] & 0xFu) | c[2 * j + 1] << 4);
    } else {
        memcpy(out, container, (size_t)packed_bytes(word_length));
    }
}

static void unpack_block(const uint8_t *__restrict packed, int32_t word_length, void *container) {
    if (word_length == 12) {
        int16_t *c = (int16_t *)container;
        for (int j = 0; j < WIRE_BLOCK / 2; j++) {
            const uint32_t pair = packed[3 * j] | (uint32_t)packed[3 * j + 1] << 8 | (uint32_t)packed[3 * j + 2] << 16;
            c[2 * j] = (int16_t)((int32_t)(pair << 20) >> 20);
            c[2 * j + 1] = (int16_t)((int32_t)(pair << 8) >> 20);
        }
    } else if (word_length == 4) {
        int8_t *c = (int8_t *)container;
        for (int j = 0; j < WIRE_BLOCK / 2; j++) {
            c[2 * j] = (int8_t)((int8_t)(packed[j] << 4) >> 4);
            c[2 * j + 1] = (int8_t)((int8_t)packed[j] >> 4);
        }
    } else {
        memcpy(container, packed, (size_t)packed_bytes(word_length));
    }
}

static inline lowprec_store block_store(void *container, int32_t word_length) {
    lowprec_store s = {};
    s.codes = container;
    s.word_length = word_length;
    s.block_size = WIRE_BLOCK;
    return s;
}

// Rounds a whole block of x and packs it. `largest` is largest_bits of it.
static void send_block(float *x, uint32_t largest, int32_t word_length, const randomness &random, uint8_t *codes,
                       int8_t *exponent) {
    alignas(64) int16_t container[WIRE_BLOCK];
    if (largest >= INFINITE) {
        *exponent = NOT_FINITE;
        memset(codes, 0, (size_t)packed_bytes(word_length));
        return;
    }
    encode_block(block_store(container, word_length), 0, WIRE_BLOCK, exponent, x, largest, random);
    pack_block(container, word_length, codes);
}

// Where block i of a piece lies among a chunk's packed codes.
static inline int64_t place_of(const lowprec_piece &p, int64_t i, int32_t word_length) {
    return (p.place + i) * packed_bytes(word_length);
}

static inline randomness bits_of_block(uint64_t key, const lowprec_piece &p, int64_t i, int role, bool stochastic) {
    return {nullptr, nullptr, key, (uint64_t)(p.first_block + i) * (WIRE_BLOCK / 2), role, stochastic};
}

static void wire_round(const lowprec_piece &p, int64_t begin, int64_t end, const lowprec_wire &wire) {
    alignas(64) float x[WIRE_BLOCK], kept[WIRE_BLOCK];
    alignas(64) int16_t container[WIRE_BLOCK];
    for (int64_t i = begin; i < end; i++) {
        const int64_t at = i * WIRE_BLOCK, n = smaller(WIRE_BLOCK, p.elements - at);
        load_floats(p.values, p.type, at, n, x);
        for (int64_t j = n; j < WIRE_BLOCK; j++) x[j] = 0;
        int8_t *residual = p.residual_codes ? p.residual_codes + at : nullptr;
        if (residual) {
            decode_block(block_store(residual, 8), 0, WIRE_BLOCK, p.residual_exponents[i], kept);
            for (int j = 0; j < WIRE_BLOCK; j++) x[j] += kept[j];
        }
        uint8_t *codes = wire.codes + place_of(p, i, wire.word_length);
        int8_t *exponent = wire.exponents + p.place + i;
        send_block(x, largest_bits(x, WIRE_BLOCK), wire.word_length, bits_of_block(p.key, p, i, 0, wire.stochastic), codes,
                   exponent);
        if (residual && *exponent != NOT_FINITE) {
            unpack_block(codes, wire.word_length, container);
            decode_block(block_store(container, wire.word_length), 0, WIRE_BLOCK, *exponent, kept);
            for (int j = 0; j < WIRE_BLOCK; j++) x[j] -= kept[j];
            encode_block(block_store(residual, 8), 0, WIRE_BLOCK, p.residual_exponents + i, x, largest_bits(x, WIRE_BLOCK),
                         bits_of_block(p.key, p, i, 1, wire.stochastic));
        }
    }
}

static void wire_sum(const lowprec_piece &p, int64_t begin, int64_t end, const lowprec_wire &wire) {
    alignas(64) float sum[WIRE_BLOCK], x[WIRE_BLOCK];
    alignas(64) int16_t container[WIRE_BLOCK];
    int32_t headroom = 0;  // ranks <= 2**headroom: with it, no sum of theirs overflows
    while (1 << headroom < wire.ranks) headroom++;
    const float divisor = wire.divisor * power_of_two(-headroom);
    for (int64_t i = begin; i < end; i++) {
        bool finite = true;
        for (int32_t rank = 0; rank < wire.ranks; rank++) {
            const int32_t exponent = wire.exponents[rank * wire.stride + p.place + i];
            if (exponent == NOT_FINITE) {
                finite = false;
                break;
            }
            const uint8_t *codes = wire.codes + rank * wire.stride + place_of(p, i, wire.word_length);
            unpack_block(codes, wire.word_length, container);
            decode_block(block_store(container, wire.word_length), 0, WIRE_BLOCK, exponent - headroom, rank ? x : sum);
            if (rank)
                for (int j = 0; j < WIRE_BLOCK; j++) sum[j] += x[j];
        }
        for (int j = 0; finite && j < WIRE_BLOCK; j++) sum[j] = sum[j] / divisor;
        send_block(sum, finite ? largest_bits(sum, WIRE_BLOCK) : INFINITE, wire.word_length,
                   bits_of_block(p.key, p, i, 2, wire.stochastic), wire.out_codes + place_of(p, i, wire.word_length),
                   wire.out_exponents + p.place + i);
    }
}

static void wire_read(const lowprec_piece &p, int64_t begin, int64_t end, const lowprec_wire &wire) {
    alignas(64) float x[WIRE_BLOCK];
    alignas(64) int16_t container[WIRE_BLOCK];
    for (int64_t i = begin; i < end; i++) {
        const int64_t at = i * WIRE_BLOCK, n = smaller(WIRE_BLOCK, p.elements - at);
        const int32_t exponent = wire.exponents[p.place + i];
        if (exponent == NOT_FINITE) {
            for (int j = 0; j < WIRE_BLOCK; j++) x[j] = NAN;
        } else {
            unpack_block(wire.codes + place_of(p, i, wire.word_length), wire.word_length, container);
            decode_block(block_store(container, wire.word_length), 0, WIRE_BLOCK, exponent, x);
        }
        if (p.type == LOWPREC_BFLOAT16)
            store_bfloat16(x, n, (uint16_t *)p.values + at);
        else
            memcpy((float *)p.values + at, x, (size_t)n * 4);
    }
}

}  // namespace LOWPREC_NAMESPACE

#define LOWPREC_TABLE(NAME)                                                                                          \
    extern const lowprec_kernels lowprec_kernels_##NAME = {                                                          \
        #NAME, LOWPREC_NAMESPACE::quantize_chunks, LOWPREC_NAMESPACE::dequantize_chunks,                             \
        LOWPREC_NAMESPACE::gather_chunks, LOWPREC_NAMESPACE::sum_of_squares, LOWPREC_NAMESPACE::round_chunks,        \
        LOWPREC_NAMESPACE::formula, LOWPREC_NAMESPACE::update_chunks,               \
        LOWPREC_NAMESPACE::finite_chunks, LOWPREC_NAMESPACE::wire_round, LOWPREC_NAMESPACE::wire_sum,                \
        LOWPREC_NAMESPACE::wire_read};
