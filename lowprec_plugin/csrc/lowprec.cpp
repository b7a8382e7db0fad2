// The door to the kernels: picks the instruction set, shares the work among threads.
#include "lowprec.h"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

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
    lowprec_item *items;
    std::vector<int64_t> chunks;       // per item
    std::vector<int64_t> chunks_turn;  // chunks in a turn, per item
    std::vector<int64_t> first_turn;   // per item, and the total
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<int32_t> seats{0};     // helpers still welcome
    void (*run)(const job &, int64_t item, int64_t begin, int64_t end) = nullptr;
    int32_t algorithm = 0;
    bool stochastic = false;
    mutable std::atomic<int64_t> nonfinite{INT64_MAX};

    job(const lowprec_item *list, int64_t count, bool flat) : items(const_cast<lowprec_item *>(list)) {
        first_turn.push_back(0);
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
            const int64_t turn = TURN / length > 0 ? TURN / length : 1;
            chunks.push_back(number);
            chunks_turn.push_back(turn);
            first_turn.push_back(first_turn.back() + (number + turn - 1) / turn);
        }
    }

    int64_t turns() const { return first_turn.back(); }

    void work() {
        size_t item = 0;
        for (;;) {
            const int64_t turn = next.fetch_add(1, std::memory_order_relaxed);
            if (turn >= turns()) return;
            while (turn >= first_turn[item + 1]) item++;  // turns only grow
            const int64_t begin = (turn - first_turn[item]) * chunks_turn[item];
            const int64_t end = begin + chunks_turn[item] < chunks[item] ? begin + chunks_turn[item] : chunks[item];
            run(*this, (int64_t)item, begin, end);
            done.fetch_add(1, std::memory_order_release);
        }
    }
};

// Helpers that sleep until there is a job. The caller does not wait for a helper to come, as OpenMP's would: only for
// the turns that one has begun. So a helper that gets no core (a loader's worker has it, say) delays nobody.
class pool {
  public:
    static pool &get() {
        // Never destroyed, for helpers outlive main; made anew after a fork, which copies no threads.
        static std::mutex making;
        static pool *made = nullptr;
        static pid_t owner = 0;
        std::lock_guard<std::mutex> lock(making);
        if (owner != getpid()) {
            made = new pool;
            owner = getpid();
        }
        return *made;
    }

    void run(const std::shared_ptr<job> &work, int32_t threads) {
        const int64_t turns = work->turns();
        const int32_t helpers = (int32_t)(turns < threads ? turns : threads) - 1;
        if (helpers > 0) {
            std::lock_guard<std::mutex> lock(mutex);
            for (; size < helpers; size++) std::thread(&pool::help, this).detach();
            work->seats = helpers;
            current = work;
            generation++;
            wake.notify_all();
        }
        work->work();
        while (work->done.load(std::memory_order_acquire) < turns) std::this_thread::yield();
    }

  private:
    void help() {
        uint64_t seen = 0;
        for (;;) {
            std::shared_ptr<job> work;
            {
                std::unique_lock<std::mutex> lock(mutex);
                wake.wait(lock, [&] { return generation != seen; });
                seen = generation;
                work = current;
            }
            if (work->seats.fetch_sub(1) > 0) work->work();
        }
    }

    std::mutex mutex;
    std::condition_variable wake;
    std::shared_ptr<job> current;
    uint64_t generation = 0;
    int32_t size = 0;
};

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
    const auto work = std::make_shared<job>(items, count, false);
    work->stochastic = stochastic != 0;
    work->run = [](const job &j, int64_t i, int64_t begin, int64_t end) {
        kernels->quantize(j.items[i], begin, end, j.stochastic);
    };
    pool::get().run(work, threads);
}

void lowprec_dequantize(lowprec_item *items, int64_t count, int32_t threads) {
    const auto work = std::make_shared<job>(items, count, false);
    work->run = [](const job &j, int64_t i, int64_t begin, int64_t end) { kernels->dequantize(j.items[i], begin, end); };
    pool::get().run(work, threads);
}

void lowprec_update(int32_t algorithm, lowprec_item *items, int64_t count, int32_t stochastic, int32_t threads) {
    const auto work = std::make_shared<job>(items, count, false);
    work->algorithm = algorithm;
    work->stochastic = stochastic != 0;
    work->run = [](const job &j, int64_t i, int64_t begin, int64_t end) {
        kernels->update(j.algorithm, j.items[i], begin, end, j.stochastic);
    };
    pool::get().run(work, threads);
}

int64_t lowprec_first_nonfinite(const lowprec_item *items, int64_t count, int32_t threads) {
    const auto work = std::make_shared<job>(items, count, true);
    work->run = [](const job &j, int64_t i, int64_t begin, int64_t end) {
        if (kernels->finite(j.items[i], begin, end)) return;
        int64_t seen = j.nonfinite.load();
        while (i < seen && !j.nonfinite.compare_exchange_weak(seen, i)) {
        }
    };
    pool::get().run(work, threads);
    const int64_t first = work->nonfinite.load();
    return first == INT64_MAX ? -1 : first;
}
