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

// Memory for what stages leave; large blocks are kept for the next solve, as fresh pages cost their first touch.
template <class T>
class Pool {
  public:
    struct Return {
        int64_t size;
        void operator()(T* memory) const { Pool::of().give(memory, size); }
    };
    using Block = std::unique_ptr<T[], Return>;

    static Pool& of() {
        static Pool* pool = new Pool;  // never destroyed: solutions may outlive it at Python's exit
        return *pool;
    }

    Block take(int64_t size) {
        if (large(size)) {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (auto at = kept_.rbegin(); at != kept_.rend(); ++at)
                if (at->second == size) {
                    T* memory = at->first;
                    kept_.erase(std::next(at).base());
                    bytes_ -= size * sizeof(T);
                    return Block(memory, Return{size});
                }
        }
        return Block(new T[size], Return{size});
    }

  private:
    static bool large(int64_t size) { return size * static_cast<int64_t>(sizeof(T)) >= 1 << 16; }

    void give(T* memory, int64_t size) {
        if (!large(size)) {
            delete[] memory;
            return;
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        kept_.emplace_back(memory, size);
        bytes_ += size * sizeof(T);
        while (bytes_ > kMost) {  // the oldest first
            bytes_ -= kept_.front().second * sizeof(T);
            delete[] kept_.front().first;
            kept_.pop_front();
        }
    }

    static constexpr int64_t kMost = 64 << 20;
    std::mutex mutex_;
    std::deque<std::pair<T*, int64_t>> kept_;
    int64_t bytes_ = 0;
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

// out = y + h * sum_j weights[j] * rows[j] for `count` rows, added up in registers; without y the sum alone times h.
template <int count, bool from, class T>
void added(T* __restrict out, const T* __restrict y, T h, const T* weights, const T* const* rows, int64_t n) {
    const T* row[count];
    T weight[count];
    for (int j = 0; j < count; ++j) {
        row[j] = rows[j];
        weight[j] = weights[j];
    }
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        T sum = T(0);
#pragma GCC unroll 16
        for (int j = 0; j < count; ++j) sum += weight[j] * row[j][i];
        out[i] = from ? y[i] + h * sum : h * sum;
    }
}

// The same for any number of rows, of which those of weight zero are left out.
template <class T>
void combine(T* out, const T* y, double h, const double* weights, T* const* rows, int64_t count, int64_t n) {
    const T* used[64];
    T scaled[64];
    int64_t m = 0;
    for (int64_t j = 0; j < count; ++j)
        if (weights[j] != 0.0) {
            used[m] = rows[j];
            scaled[m++] = static_cast<T>(weights[j]);
        }
    const T size = static_cast<T>(h);
    switch (m) {
#define ROWS_(k)                                                              \
    case k:                                                                   \
        return y ? added<k, true>(out, y, size, scaled, used, n)              \
                 : added<k, false>(out, y, size, scaled, used, n);
        ROWS_(0) ROWS_(1) ROWS_(2) ROWS_(3) ROWS_(4) ROWS_(5) ROWS_(6) ROWS_(7) ROWS_(8)
        ROWS_(9) ROWS_(10) ROWS_(11) ROWS_(12) ROWS_(13)
#undef ROWS_
    }
    // The methods of the highest orders.
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        T sum = T(0);
        for (int64_t j = 0; j < m; ++j) sum += scaled[j] * used[j][i];
        out[i] = y ? y[i] + size * sum : size * sum;
    }
}

template <class T>
bool finite(const T* x, int64_t n) {
    // A sum of zeros is zero unless one of them came of an infinity or a NaN.
    T sum = T(0);
    for (int64_t i = 0; i < n; ++i) sum += x[i] * T(0);
    return sum == T(0);
}
