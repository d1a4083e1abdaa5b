// What stages are made of: the field as it is called, and sums of rows.

enum { kSuccess = 0, kFailed = 1, kInterrupted = 2, kMemory = 3 };

// Python's lock, let go while it lives, and its signal handlers, run now and then.
class Watchdog {
  public:
    explicit Watchdog(const Python& python) : python_(python), state_(python.save()), last_(Clock::now()) {}
    ~Watchdog() { python_.restore(state_); }
    Watchdog(const Watchdog&) = delete;
    Watchdog& operator=(const Watchdog&) = delete;

    // Whether a handler raised: what it raised is then Python's current exception.
    bool barks() {
        const auto now = Clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return false;
        last_ = now;
        python_.restore(state_);
        const bool raised = python_.signals() != 0;
        state_ = python_.save();
        return raised;
    }

  private:
    using Clock = std::chrono::steady_clock;
    const Python& python_;
    void* state_;
    Clock::time_point last_;
};

template <class T>
struct Field {
    using Plain = void (*)(T*, const T*, const T*, void* const*, double, T*);
    using Back = void (*)(T*, T*, const T*, const T*, const T*, void* const*, double, T*, T*);

    Field(const Problem& x, const T* parameters)
        : f(reinterpret_cast<Plain>(x.f)),
          forward(reinterpret_cast<Plain>(x.forward)),
          backward(reinterpret_cast<Back>(x.backward)),
          p(parameters),
          constants(x.constants),
          n(x.n),
          f_work(x.f_work),
          left(x.n + x.joint_work),
          backward_work(x.backward_work) {}

    // f at u, leaving in `at` what a pullback needs: u itself, and what was computed on the way.
    void leave(T* out, const T* u, double t, T* at) const {
        std::memcpy(at, u, n * sizeof(T));
        forward(out, u, p, constants, t, at + n);
    }

    Plain f, forward;
    Back backward;
    const T* p;
    void* const* constants;
    int64_t n, f_work, left, backward_work;
};

// out = y + h * sum_j weights[j] * rows[j], or without y the sum alone times h
template <class T>
void combine(T* __restrict out, const T* y, double h, const double* weights, T* const* rows, int64_t count, int64_t n) {
    const T* used[64];
    T scaled[64];
    int64_t m = 0;
    for (int64_t j = 0; j < count; ++j)
        if (weights[j] != 0.0) {
            used[m] = rows[j];
            scaled[m++] = static_cast<T>(weights[j]);
        }
    const T size = static_cast<T>(h);
    for (int64_t start = 0; start < n; start += kBlock) {
        const int64_t length = std::min(kBlock, n - start);
        T sum[kBlock];
        for (int64_t i = 0; i < length; ++i) sum[i] = T(0);
        for (int64_t j = 0; j < m; ++j) {
            const T w = scaled[j];
            const T* __restrict row = used[j] + start;
            for (int64_t i = 0; i < length; ++i) sum[i] += w * row[i];
        }
        T* __restrict to = out + start;
        if (y) {
            const T* from = y + start;
            for (int64_t i = 0; i < length; ++i) to[i] = from[i] + size * sum[i];
        } else {
            for (int64_t i = 0; i < length; ++i) to[i] = size * sum[i];
        }
    }
}

template <class T>
bool finite(const T* x, int64_t n) {
    // A sum of zeros is zero unless one of them came of an infinity or a NaN.
    T sum = T(0);
    for (int64_t i = 0; i < n; ++i) sum += x[i] * T(0);
    return sum == T(0);
}
