// Every kernel with several threads, for ThreadSanitizer: `threads SET [race]`. With "race" two threads write one tensor.
//
// No OpenMP is in this process, so work is shared among std::thread, which ThreadSanitizer understands. What threads
// share is the same as with torch's OpenMP: the queue of turns, the counts, and neighbouring chunks.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "lowprec.h"

namespace {

constexpr int32_t THREADS = 4;
constexpr int64_t ROWS = 1031, ROW_LENGTH = 777;  // rows end inside blocks; 50 turns and more, so that they are shared

struct tensor {
    std::vector<int16_t> codes = std::vector<int16_t>(ROWS * ROW_LENGTH);
    std::vector<int8_t> exponents = std::vector<int8_t>(ROWS * ((ROW_LENGTH + 255) / 256), -110);

    lowprec_store store(int32_t word_length, int32_t squared = 0) {
        return {codes.data(), nullptr, exponents.data(), word_length, 0, 256, squared};
    }
    bool operator==(const tensor &other) const { return codes == other.codes && exponents == other.exponents; }
};

std::vector<float> numbers() {
    std::vector<float> x(ROWS * ROW_LENGTH);
    for (size_t i = 0; i < x.size(); i++) x[i] = std::sin((float)i) * (float)(i % 97);
    return x;
}

const std::vector<float> x = numbers();

lowprec_item item_of(float *out = nullptr) {
    lowprec_item item = {};
    item.grad = x.data();
    item.out = out;
    item.rows = ROWS;
    item.row_length = ROW_LENGTH;
    item.key = 12345;
    return item;
}

// Everything once; what it leaves is what `threads` must not change.
struct results {
    tensor parameter, first, second, quantized;
    std::vector<float> dequantized = x, rounded = x;
    lowprec_counts counts = {};
    int64_t nonfinite = 0;
    std::vector<uint8_t> packed, sums;
    std::vector<float> mean = x;
    std::vector<int8_t> residual_codes, residual_exponents;

    explicit results(int32_t threads) {
        lowprec_item item = item_of();
        item.stores[0] = quantized.store(16);
        lowprec_quantize(&item, 1, 1, threads);
        item.out = dequantized.data();
        lowprec_dequantize(&item, 1, threads);
        lowprec_item rounding = item_of(rounded.data());
        rounding.stores[0] = quantized.store(12);
        lowprec_round(&rounding, 1, 1, threads);
        update(threads);
        std::vector<float> infinite = x;
        infinite.back() = infinite.front() = INFINITY;
        lowprec_item searched[3] = {item_of(), item_of(), item_of()};
        searched[1].grad = searched[2].grad = infinite.data();
        nonfinite = lowprec_first_nonfinite(searched, 3, threads);
        exchange(threads);
    }

    void update(int32_t threads) {
        lowprec_item item = item_of();
        const float hyper[] = {1, 0, 0.001f, 0.001f, 0.1f, 0.999f, 0.001f, 3, 1e-8f};
        memcpy(item.hyper, hyper, sizeof hyper);
        item.counts = &counts;
        item.stores[0] = parameter.store(16), item.stores[1] = first.store(16), item.stores[2] = second.store(16, 1);
        int32_t adam = 0;
        while (strncmp(lowprec_formula(adam), "adam/", 5)) adam++;
        for (int step = 0; step < 2; step++) lowprec_update(adam, &item, 1, 1, threads);
    }

    void exchange(int32_t threads) {
        const int64_t elements = ROWS * ROW_LENGTH, blocks = (elements + LOWPREC_WIRE_BLOCK - 1) / LOWPREC_WIRE_BLOCK;
        const int64_t codes = blocks * LOWPREC_WIRE_BLOCK, stride = codes + blocks;
        packed.resize(2 * stride), sums.resize(stride), residual_codes.resize(codes), residual_exponents.resize(blocks);
        lowprec_piece piece = {};
        piece.values = mean.data();
        piece.residual_codes = residual_codes.data(), piece.residual_exponents = residual_exponents.data();
        piece.elements = elements;
        piece.key = 6789;
        for (int rank = 0; rank < 2; rank++) {
            uint8_t *chunk = packed.data() + rank * stride;
            const lowprec_wire sent = {chunk, (int8_t *)chunk + codes, nullptr, nullptr, 0, 1, 1, 8, 1};
            lowprec_wire_round(&piece, 1, &sent, threads);
        }
        uint8_t *out = sums.data();
        const lowprec_wire summed = {packed.data(), (int8_t *)packed.data() + codes, out, (int8_t *)out + codes, stride, 2, 2, 8, 1};
        lowprec_wire_sum(&piece, 1, &summed, threads);
        const lowprec_wire read = {out, (int8_t *)out + codes, nullptr, nullptr, 0, 1, 1, 8, 1};
        lowprec_wire_read(&piece, 1, &read, threads);
    }

    bool operator==(const results &o) const {
        return parameter == o.parameter && first == o.first && second == o.second && quantized == o.quantized &&
               dequantized == o.dequantized && rounded == o.rounded && counts.moved == o.counts.moved &&
               counts.elements == o.counts.elements && counts.lost == o.counts.lost &&
               counts.unchanged == o.counts.unchanged && nonfinite == o.nonfinite && packed == o.packed &&
               sums == o.sums && mean == o.mean && residual_codes == o.residual_codes;
    }
};

void race() {
    tensor shared;
    const auto quantize = [&] {
        lowprec_item item = item_of();
        item.stores[0] = shared.store(16);
        lowprec_quantize(&item, 1, 1, 1);
    };
    std::thread other(quantize);
    quantize();
    other.join();
}

}  // namespace

int main(int count, char **arguments) {
    if (count < 2 || lowprec_select(arguments[1])) return fprintf(stderr, "no such instruction set here\n"), 2;
    if (count > 2) return race(), 0;
    if (!(results(1) == results(THREADS))) return fprintf(stderr, "threads change what comes out\n"), 1;
    return 0;
}
