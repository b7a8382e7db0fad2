// The door to the kernels: picks the instruction set, shares the work among threads.
#include "lowprec.h"

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

extern const lowprec_kernels lowprec_kernels_baseline;
#if defined(__x86_64__)
extern const lowprec_kernels lowprec_kernels_avx2, lowprec_kernels_avx512;
#endif

namespace {

const lowprec_kernels *best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return &lowprec_kernels_avx512;
    if (__builtin_cpu_supports("avx2")) return &lowprec_kernels_avx2;
#endif
    return &lowprec_kernels_baseline;
}

const lowprec_kernels *kernels = best();

// Elements that one turn of a thread takes: large enough to hide the hand-over, small enough to share evenly.
constexpr int64_t TURN = 1 << 14;

// Work on many tensors as one queue of turns. A turn is a range of one tensor's chunks.
struct job {
    std::vector<int64_t> chunks;       // per item
    std::vector<int64_t> chunks_turn;  // chunks in a turn, per item
    std::vector<int64_t> first_turn;   // per item, and the total
    std::atomic<int64_t> next{0};
    std::function<void(int64_t item, int64_t begin, int64_t end)> run;

    job(const lowprec_item *list, int64_t count, bool flat) {
        for (int64_t i = 0; i < count; i++) {
            const lowprec_item &item = list[i];
            const int64_t elements = item.rows * item.row_length;
            const int64_t block = flat ? LOWPREC_MAX_BLOCK : item.stores[0].block_size;
            int64_t number, length = block;
            if (elements == 0) {
                number = 0;
            } else if (flat) {
                number = (elements + block - 1) / block;
            } else if (item.row_length > block) {
                number = item.rows * ((item.row_length + block - 1) / block);
            } else {
                const int64_t rows = item.row_length >= block ? 1 : block / item.row_length;
                number = (item.rows + rows - 1) / rows;
                length = rows * item.row_length;
            }
            add(number, length);
        }
    }

    job(const lowprec_piece *list, int64_t count) {
        for (int64_t i = 0; i < count; i++)
            add((list[i].elements + LOWPREC_WIRE_BLOCK - 1) / LOWPREC_WIRE_BLOCK, LOWPREC_WIRE_BLOCK);
    }

    void add(int64_t number, int64_t length) {
        const int64_t turn = TURN / length > 0 ? TURN / length : 1;
        if (first_turn.empty()) first_turn.push_back(0);
        chunks.push_back(number);
        chunks_turn.push_back(turn);
        first_turn.push_back(first_turn.back() + (number + turn - 1) / turn);
    }

    int64_t turns() const { return first_turn.empty() ? 0 : first_turn.back(); }

    void work() {
        size_t item = 0;
        for (;;) {
            const int64_t turn = next.fetch_add(1, std::memory_order_relaxed);
            if (turn >= turns()) return;
            while (turn >= first_turn[item + 1]) item++;  // turns only grow
            const int64_t begin = (turn - first_turn[item]) * chunks_turn[item];
            const int64_t end = begin + chunks_turn[item] < chunks[item] ? begin + chunks_turn[item] : chunks[item];
            run((int64_t)item, begin, end);
        }
    }
};

// A job below this many turns (half a million elements, well under a millisecond) is not shared: handing it over costs
// as much, and where the cores are busy with something else (a loader's workers, say) OpenMP makes its caller wait until
// every thread has had a core, which is milliseconds.
constexpr int64_t WORTH_SHARING = 32;

void enter(void *work) { static_cast<job *>(work)->work(); }

// Threads are those of torch's OpenMP where it can be found: they are awake after torch's own kernels, and spin for a
// while, so that threads of ours would have to share the cores with them. Elsewhere short-lived ones.
void share(job &work, int32_t threads) {
    if (work.turns() < WORTH_SHARING || threads <= 1) return work.work();
#if defined(__unix__) || defined(__APPLE__)
    using parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
    static const parallel gomp = reinterpret_cast<parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    if (gomp) return gomp(enter, &work, (unsigned)threads, 0);
#endif
    std::vector<std::thread> helpers;
    for (int32_t i = 1; i < threads; i++) helpers.emplace_back(enter, &work);
    work.work();
    for (auto &helper : helpers) helper.join();
}

}  // namespace

int32_t lowprec_abi(void) { return LOWPREC_ABI; }

const char *lowprec_isa(void) { return kernels->name; }

int32_t lowprec_select(const char *isa) {
    const lowprec_kernels *top = best();
    if (!strcmp(isa, "baseline")) {
        kernels = &lowprec_kernels_baseline;
        return 0;
    }
#if defined(__x86_64__)
    if (!strcmp(isa, "avx2") && top != &lowprec_kernels_baseline) {
        kernels = &lowprec_kernels_avx2;
        return 0;
    }
    if (!strcmp(isa, "avx512") && top == &lowprec_kernels_avx512) {
        kernels = top;
        return 0;
    }
#else
    (void)top;
#endif
    return 1;
}

void lowprec_quantize(lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads) {
    job work(items, count, false);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->quantize(items[i], begin, end, stochastic != 0); };
    share(work, threads);
}

void lowprec_dequantize(lowprec_item *items, int64_t count, int32_t threads) {
    job work(items, count, false);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->dequantize(items[i], begin, end); };
    share(work, threads);
}

void lowprec_gather(lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads) {
    job work(items, count, false);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->gather(items[i], begin, end, stochastic != 0); };
    share(work, threads);
}

// Turns are added up in their order, so that the bits of the sum do not depend on threads.
double lowprec_squares(lowprec_item *item, int32_t threads) {
    job work(item, 1, false);
    std::vector<double> parts((size_t)work.turns());
    const int64_t length = work.chunks_turn[0];
    work.run = [&](int64_t, int64_t begin, int64_t end) {
        parts[(size_t)(begin / length)] = kernels->squares(*item, begin, end);
    };
    share(work, threads);
    double sum = 0;
    for (double part : parts) sum += part;
    return sum;
}

void lowprec_round(lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads) {
    job work(items, count, false);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->round(items[i], begin, end, stochastic != 0); };
    share(work, threads);
}

const char *lowprec_formula(int32_t algorithm) { return kernels->formula(algorithm); }

int32_t lowprec_update(int32_t algorithm, lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads) {
    if (!kernels->formula(algorithm)) return 1;
    job work(items, count, false);
    work.run = [=](int64_t i, int64_t begin, int64_t end) {
        kernels->update(algorithm, items[i], begin, end, stochastic != 0);
    };
    share(work, threads);
    return 0;
}

int64_t lowprec_first_nonfinite(const lowprec_item *items, int64_t count, int32_t threads) {
    job work(items, count, true);
    std::atomic<int64_t> nonfinite{INT64_MAX};
    work.run = [=, &nonfinite](int64_t i, int64_t begin, int64_t end) {
        if (kernels->finite(items[i], begin, end)) return;
        int64_t seen = nonfinite.load();
        while (i < seen && !nonfinite.compare_exchange_weak(seen, i)) {
        }
    };
    share(work, threads);
    const int64_t first = nonfinite.load();
    return first == INT64_MAX ? -1 : first;
}

void lowprec_wire_round(const lowprec_piece *pieces, int64_t count, const lowprec_wire *wire, int32_t threads) {
    job work(pieces, count);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->wire_round(pieces[i], begin, end, *wire); };
    share(work, threads);
}

void lowprec_wire_sum(const lowprec_piece *pieces, int64_t count, const lowprec_wire *wire, int32_t threads) {
    job work(pieces, count);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->wire_sum(pieces[i], begin, end, *wire); };
    share(work, threads);
}

void lowprec_wire_read(const lowprec_piece *pieces, int64_t count, const lowprec_wire *wire, int32_t threads) {
    job work(pieces, count);
    work.run = [=](int64_t i, int64_t begin, int64_t end) { kernels->wire_read(pieces[i], begin, end, *wire); };
    share(work, threads);
}
