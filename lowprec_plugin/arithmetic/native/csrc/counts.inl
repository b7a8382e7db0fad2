// What an update does, counted block by block: the law is in ../../reference/update.py. Included in kernels.inl.

#if defined(__AVX512F__)
enum { WIDE = 8 };
#elif defined(__AVX2__)
enum { WIDE = 4 };
#else
enum { WIDE = 2 };
#endif
typedef float floats __attribute__((vector_size(4 * WIDE)));
typedef double doubles __attribute__((vector_size(8 * WIDE)));
typedef int64_t longs __attribute__((vector_size(8 * WIDE)));

// Reads the parameter before and after its chunk is written. Apart from the updates, which are fast without it.
struct counter {
    alignas(64) float before[MAX], computed[MAX], stored[MAX];
    alignas(64) double half[MAX];  // of a code, after the update
    int64_t elements;
    longs moved, lost, unchanged;  // less, as true is -1
    doubles update_squares, error_squares;

    void start() {
        elements = 0;
        moved = lost = unchanged = longs{};
        update_squares = error_squares = doubles{};
    }

    __attribute__((noinline)) void read(const lowprec_store &s, const chunk &c, const float *__restrict value) {
        decode(s, c, before);
        for (int64_t j = 0; j < c.n; j++)
            computed[j] = value[j] > FLOAT_MAX ? FLOAT_MAX : value[j] < -FLOAT_MAX ? -FLOAT_MAX : value[j];
    }

    __attribute__((noinline)) void count(const lowprec_store &s, const chunk &c) {
        decode(s, c, stored);
        const int8_t *e = s.exponents ? s.exponents + c.block : nullptr;
        for (int64_t j = 0; j < c.n; j += c.block_length) {
            const double size = power_of_two((e ? *e++ : s.exponent) - 1);
            for (int64_t k = j; k < j + c.block_length; k++) half[k] = size;
        }
        for (int64_t j = c.n; j % WIDE; j++) before[j] = computed[j] = stored[j] = half[j] = 0;
        elements += c.n;
        for (int64_t j = 0; j < c.n; j += WIDE) {
            const doubles old = wide(before + j), now = wide(computed + j), after = wide(stored + j);
            const doubles update = now - old, error = after - now, size = (doubles)((longs)update & INT64_MAX);
            const longs moves = update != 0;
            moved += moves;
            lost += moves & (size < *(const doubles *)(half + j));
            unchanged += moves & (after == old);
            update_squares += update * update;
            error_squares += error * error;
        }
    }

    void add_to(lowprec_counts &counts) const {
        __atomic_fetch_add(&counts.elements, elements, __ATOMIC_RELAXED);
        for (int k = 0; k < WIDE; k++) {
            __atomic_fetch_sub(&counts.moved, moved[k], __ATOMIC_RELAXED);
            __atomic_fetch_sub(&counts.lost, lost[k], __ATOMIC_RELAXED);
            __atomic_fetch_sub(&counts.unchanged, unchanged[k], __ATOMIC_RELAXED);
        }
        add(counts.update_squares, update_squares);
        add(counts.error_squares, error_squares);
    }

    static inline doubles wide(const float *x) {
        floats v;
        memcpy(&v, x, 4 * WIDE);
        return __builtin_convertvector(v, doubles);
    }

    // Threads add in any order, which changes the last bits of a double at most.
    static void add(double &sum, const doubles &parts) {
        double part = 0, seen, wanted;
        for (int k = 0; k < WIDE; k++) part += parts[k];
        __atomic_load(&sum, &seen, __ATOMIC_RELAXED);
        do wanted = seen + part;
        while (!__atomic_compare_exchange(&sum, &seen, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    }
};
