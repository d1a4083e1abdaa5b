// Whole solves by explicit Runge-Kutta methods, and the discrete adjoint of the steps they took.
//
// The same algorithm as pynode/native/loop.py, step for step: what is decided there is decided here, from the same
// numbers in double precision. The field comes as three functions (pynode/cpp/emit.py), the method as a tableau.
// Whatever ends other than well is only told: the solve is then repeated in Python, whose messages explain it.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTiny = 1e-30;  // as in error_norm.py: sums of squares below it have lost digits
constexpr int64_t kBlock = 512;  // elements that fit a cache line many times over

// Layouts of these structures: pynode/cpp/driver.py.

struct Method {
    int64_t stages, all, needed, fsal, error_order, degree;
    const double *c, *a, *b, *error, *error_low, *dense;  // a: all rows of `all` numbers; dense: all rows of `degree`
};

struct Problem {
    int64_t n, parameters, f_work, joint_work, backward_work;
    void *f, *forward, *backward;
    const void* p;
    void* const* constants;
};

struct Request {
    Problem problem;
    const Method* method;
    int64_t measured;  // leading channels that count in the error norm
    double pcoeff, icoeff, dcoeff, safety, factormin, factormax;
    double t0, t1;
    const void *y0, *derivative;
    const void *rtol, *atol;
    int64_t rtols, atols;
    double dt0, dtmin, dtmax;
    int64_t force_dtmin, max_steps;
    const double* stops;
    int64_t n_stops;
    const double* times;
    int64_t n_times;
    void* values;
    const double* mesh;
    int64_t n_mesh;
    int64_t keep;    // states and saves, for a pullback or dense output
    int64_t budget;  // bytes of what stages leave for their pullback
    int64_t (*poll)();
    // Results
    int64_t ended, nfe, accepted, rejected, saved, steps;
    double size;
    void* solution;
    const double* boundaries;
    const void *states, *end;
};

struct PullBack {
    Problem problem;
    const Method* method;
    void* solution;
    const void* cotangents;  // (saved, n)
    void *dy0, *dp;
    int64_t (*poll)();
    // Results
    int64_t ended, nfe, nvjp, steps;
};

enum { kSuccess = 0, kFailed = 1, kInterrupted = 2, kMemory = 3 };

class Watchdog {
  public:
    explicit Watchdog(int64_t (*poll)()) : poll_(poll), last_(Clock::now()) {}
    // Whether the user wants to stop.
    bool barks() {
        if (!poll_) return false;
        const auto now = Clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return false;
        last_ = now;
        return poll_() != 0;
    }

  private:
    using Clock = std::chrono::steady_clock;
    int64_t (*poll_)();
    Clock::time_point last_;
};

template <class T>
struct Field {
    using Plain = void (*)(T*, const T*, const T*, void* const*, double, T*);
    using Back = void (*)(T*, T*, const T*, const T*, const T*, void* const*, double, T*, T*);

    explicit Field(const Problem& x)
        : f(reinterpret_cast<Plain>(x.f)),
          forward(reinterpret_cast<Plain>(x.forward)),
          backward(reinterpret_cast<Back>(x.backward)),
          p(static_cast<const T*>(x.p)),
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

// Root mean square of x / (atol + rtol * size), as ErrorNorm.
template <class T>
class Norm {
  public:
    explicit Norm(const Request& r)
        : n_(r.measured), rtols_(r.rtols), atols_(r.atols), rtol_(static_cast<const T*>(r.rtol)),
          atol_(static_cast<const T*>(r.atol)), scale_(r.measured) {
        const T tiny = std::numeric_limits<T>::min();
        floor_ = false;
        for (int64_t i = 0; i < atols_; ++i) floor_ = floor_ || atol_[i] < tiny;
    }

    void between(const T* a, const T* b) {
        const T tiny = std::numeric_limits<T>::min();
        if (rtols_ == 1 && atols_ == 1) {
            const T rtol = *rtol_, atol = *atol_;
            for (int64_t i = 0; i < n_; ++i) {
                const T x = std::abs(a[i]), y = std::abs(b[i]);
                scale_[i] = atol + rtol * (y != y || y > x ? y : x);  // a NaN stays, as in torch.maximum
            }
        } else {
            for (int64_t i = 0; i < n_; ++i) {
                const T x = std::abs(a[i]), y = std::abs(b[i]);
                scale_[i] = atol_[atols_ == 1 ? 0 : i] + rtol_[rtols_ == 1 ? 0 : i] * (y != y || y > x ? y : x);
            }
        }
        if (floor_)
            for (int64_t i = 0; i < n_; ++i) scale_[i] = scale_[i] < tiny ? tiny : scale_[i];
    }

    double operator()(const T* x, double factor = 1.0) const {
        double sum = 0.0;
        for (int64_t i = 0; i < n_; ++i) {
            const double ratio = x[i] / scale_[i];
            sum += ratio * ratio;
        }
        if (sum > kTiny && sum < kInfinity) return std::abs(factor) * std::sqrt(sum / n_);
        double largest = 0.0;
        for (int64_t i = 0; i < n_; ++i) {
            const double ratio = std::abs(static_cast<double>(x[i] / scale_[i]));
            if (ratio != ratio) return ratio;
            largest = std::max(largest, ratio);
        }
        if (largest == 0.0) return 0.0;
        if (!std::isfinite(largest)) return kInfinity;
        sum = 0.0;
        for (int64_t i = 0; i < n_; ++i) {
            const double ratio = static_cast<double>(x[i] / scale_[i]) / largest;
            sum += ratio * ratio;
        }
        return std::abs(factor) * largest * std::sqrt(sum / n_);
    }

  private:
    int64_t n_, rtols_, atols_;
    const T *rtol_, *atol_;
    std::vector<T> scale_;
    bool floor_;
};

// A save point: in which step it lies and how far along it.
struct Saved {
    int64_t step;  // -1: the initial state
    double theta;  // 1 exactly: the end of the step
};

template <class T>
struct Solution {
    int64_t n = 0, stages = 0;
    std::vector<double> boundaries;
    std::vector<T> states;
    std::vector<T> end;
    std::vector<Saved> saved;
    // What the stages of every step left for their pullback; null where there was no room.
    std::vector<std::unique_ptr<T[]>> left;
    std::unique_ptr<T[]> first;  // of f at the start
};

template <class T>
class Solver {
  public:
    explicit Solver(Request& r)
        : r_(r), m_(*r.method), field_(r.problem), n_(r.problem.n), watchdog_(r.poll), solution_(new Solution<T>),
          memory_((m_.all + 4) * n_ + field_.f_work + 1), rows_(m_.all) {
        for (int64_t i = 0; i < m_.all; ++i) rows_[i] = memory_.data() + i * n_;
        y_ = memory_.data() + m_.all * n_;
        next_ = y_ + n_;
        state_ = next_ + n_;
        error_ = state_ + n_;
        work_ = error_ + n_;
        taping_ = r.keep && r.budget > 0 && field_.forward;
        solution_->n = n_;
        solution_->stages = m_.stages;
    }

    void run() {
        std::memcpy(y_, r_.y0, n_ * sizeof(T));
        solution_->boundaries.push_back(r_.t0);
        save_start();
        if (r_.derivative && !taping_) {
            std::memcpy(rows_[0], r_.derivative, n_ * sizeof(T));
        } else {
            T* left = nullptr;
            if (taping_) {
                solution_->first.reset(new T[field_.left]);
                left = solution_->first.get();
            }
            evaluate(rows_[0], y_, r_.t0, left);
        }
        r_.ended = finite(rows_[0], n_) ? (r_.mesh ? fixed() : adaptive()) : kFailed;
        if (r_.ended == kSuccess && !finite(y_, n_)) r_.ended = kFailed;
        deliver();
    }

  private:
    void evaluate(T* out, const T* u, double t, T* left) {
        ++r_.nfe;
        if (left) {
            field_.leave(out, u, t, left);
        } else {
            field_.f(out, u, field_.p, field_.constants, t, work_);
        }
    }

    // Room for what stage i of the step at hand leaves.
    T* place(int64_t i) { return left_ ? left_ + i * field_.left : nullptr; }

    void make_room() {
        left_ = nullptr;
        if (!taping_) return;
        const int64_t size = m_.stages * field_.left;
        if ((used_ + size) * static_cast<int64_t>(sizeof(T)) > r_.budget) {
            taping_ = false;
            return;
        }
        used_ += size;
        room_.reset(new T[size]);
        left_ = room_.get();
    }

    void attempt(double t, double h, double end) {
        for (int64_t i = 1; i < m_.stages; ++i) {
            T* state = i + 1 == m_.stages && m_.fsal ? next_ : state_;
            combine(state, y_, h, m_.a + i * m_.all, rows_.data(), i, n_);
            evaluate(rows_[i], state, m_.c[i] == 1.0 ? end : t + m_.c[i] * h, place(i));
        }
        if (!m_.fsal) combine(next_, y_, h, m_.b, rows_.data(), m_.stages, n_);
    }

    // The accepted step from t to end: what is kept of it, what is saved in it, and the next one's first stage.
    void accept(double t, double h, double end) {
        ++r_.accepted;
        if (r_.keep) {
            solution_->states.insert(solution_->states.end(), y_, y_ + n_);
            solution_->left.push_back(std::move(room_));
        }
        save(t, h, end);
        solution_->boundaries.push_back(end);
        std::swap(y_, next_);
    }

    void advance(double t) {
        make_room();
        if (m_.fsal) {
            std::swap(rows_[0], rows_[m_.stages - 1]);
        } else {
            evaluate(rows_[0], y_, t, place(0));
        }
    }

    void save_start() {
        if (r_.n_times && r_.times[0] == r_.t0) {
            std::memcpy(r_.values, y_, n_ * sizeof(T));
            r_.saved = 1;
            if (r_.keep) solution_->saved.push_back({-1, 0.0});
        }
    }

    void save(double t, double h, double end) {
        const double sign = h < 0 ? -1.0 : 1.0;
        bool extended = false;
        const int64_t step = static_cast<int64_t>(solution_->boundaries.size()) - 1;
        for (; r_.saved < r_.n_times && (r_.times[r_.saved] - end) * sign <= 0; ++r_.saved) {
            T* out = static_cast<T*>(r_.values) + r_.saved * n_;
            const double at = r_.times[r_.saved];
            if (at == end) {
                std::memcpy(out, next_, n_ * sizeof(T));
                if (r_.keep) solution_->saved.push_back({step, 1.0});
                continue;
            }
            if (!extended) extend(t, h, end);
            extended = true;
            const double theta = (at - t) / h;
            double weights[64];
            dense_weights(m_, theta, weights);
            combine(out, y_, h, weights, rows_.data(), m_.all, n_);
            if (r_.keep) solution_->saved.push_back({step, theta});
        }
    }

    // The stages that only dense output needs.
    void extend(double t, double h, double end) {
        for (int64_t i = m_.stages; i < m_.all; ++i) {
            combine(state_, y_, h, m_.a + i * m_.all, rows_.data(), i, n_);
            evaluate(rows_[i], state_, m_.c[i] == 1.0 ? end : t + m_.c[i] * h, nullptr);
        }
    }

  public:
    static void dense_weights(const Method& m, double theta, double* weights) {
        for (int64_t i = 0; i < m.all; ++i) {
            double value = 0.0;
            for (int64_t j = m.degree; j-- > 0;) value = (value + m.dense[i * m.degree + j]) * theta;
            weights[i] = value;
        }
    }

  private:
    int64_t fixed() {
        if (r_.n_mesh - 1 > r_.max_steps) return kFailed;
        make_room();
        for (int64_t i = 0; i + 1 < r_.n_mesh; ++i) {
            const double t = r_.mesh[i], end = r_.mesh[i + 1];
            if (watchdog_.barks()) return kInterrupted;
            attempt(t, end - t, end);
            accept(t, end - t, end);
            if (i + 2 < r_.n_mesh) advance(end);
        }
        return kSuccess;
    }

    double ratio(const Norm<T>& norm, double h) {
        combine(error_, static_cast<const T*>(nullptr), 1.0, m_.error, rows_.data(), m_.stages, n_);
        const double high = norm(error_, h);
        if (!m_.error_low) return high;
        combine(error_, static_cast<const T*>(nullptr), 1.0, m_.error_low, rows_.data(), m_.stages, n_);
        const double low = norm(error_, h);
        return high == 0.0 ? 0.0 : high * (high / std::hypot(high, 0.1 * low));
    }

    double filtered(double reciprocal) const {
        const double k = static_cast<double>(m_.error_order);
        const double p = r_.pcoeff / k, i = r_.icoeff / k, d = r_.dcoeff / k;
        double factor = std::pow(reciprocal, p + i + d);
        if (p != 0.0 || d != 0.0)
            factor *= std::pow(history_[0], -(p + 2 * d)) * std::pow(history_[1], d);
        return factor;
    }

    bool propose(double ratio, double& factor) {
        if (!(ratio <= 1.0)) {
            factor = r_.factormin;
            if (std::isfinite(ratio))
                factor = std::min(r_.safety, std::max(r_.factormin, r_.safety * filtered(1.0 / ratio)));
            return false;
        }
        const double reciprocal = ratio > 1e-10 ? 1.0 / ratio : 1e10;
        factor = std::min(r_.factormax, std::max(1.0, r_.safety * filtered(reciprocal)));
        history_[1] = history_[0];
        history_[0] = reciprocal;
        return true;
    }

    double initial_step(const Norm<T>& norm, double span) {
        const double d0 = norm(y_), d1 = norm(rows_[0]);
        double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
        h0 = std::min(h0 > 0 ? h0 : 1e-6, std::abs(span));
        const double h = std::copysign(h0, span);
        const double one = 1.0;
        combine(state_, y_, h, &one, rows_.data(), 1, n_);
        T* f1 = rows_[m_.all > 1 ? 1 : 0];
        evaluate(f1, state_, r_.t0 + h, nullptr);
        for (int64_t i = 0; i < n_; ++i) error_[i] = f1[i] - rows_[0][i];
        const double d2 = norm(error_) / h0;
        double h1;
        if (std::max(d1, d2) <= 1e-15) {
            h1 = std::max(1e-6, h0 * 0.001);
        } else {
            const double power = 1.0 / m_.error_order, unit = 100.0 * h0;
            h1 = std::pow(0.01 / std::max(d1, d2), power);
            const double most = std::max(d1 * unit, d2 * unit * unit);
            if (h1 > unit && most > 0.0) h1 = unit * std::pow(0.01 / most, power);
        }
        const double size = std::min(std::min(100.0 * h0, h1), std::abs(span));
        return size > 0 ? size : h0;
    }

    static double ulp(double t) {
        const double a = std::abs(t);
        return std::nextafter(a, kInfinity) - a;
    }

    int64_t adaptive() {
        Norm<T> norm(r_);
        const double sign = std::copysign(1.0, r_.t1 - r_.t0);
        int64_t stop = 0;
        double t = r_.t0, target = stop < r_.n_stops ? r_.stops[stop] : r_.t1;
        norm.between(y_, y_);
        double size = std::isnan(r_.dt0) ? initial_step(norm, r_.t1 - r_.t0) : r_.dt0;
        size = std::max(std::max(std::min(size, r_.dtmax), r_.dtmin), 4.0 * ulp(t));
        double stretch = 1.01;
        make_room();
        for (int64_t attempts = 0; attempts < r_.max_steps; ++attempts) {
            if (watchdog_.barks()) return kInterrupted;
            const double floor = std::max(r_.dtmin, 4.0 * ulp(t));
            if (r_.force_dtmin) size = std::max(size, r_.dtmin);
            const double proposed = size, left = (target - t) * sign;
            const bool clipped = size >= left || (size * stretch >= left && left <= r_.dtmax * (1.0 + 1e-9));
            const double end = clipped ? target : t + sign * size;
            if (!clipped && size < floor) return kFailed;
            const double h = end - t;
            attempt(t, h, end);
            norm.between(y_, next_);
            const double measured = ratio(norm, h);
            double factor;
            bool accepted = propose(measured, factor);
            const bool forced = r_.force_dtmin && std::abs(h) <= 1.02 * r_.dtmin;
            if (forced && std::isfinite(measured)) accepted = true;
            if (!accepted) {
                ++r_.rejected;
                if ((clipped && std::abs(h) < floor) || forced) return kFailed;
                size = std::abs(h) * factor;
                stretch = 1.0;
                continue;
            }
            stretch = 1.01;
            accept(t, h, end);
            size = std::abs(h) * factor;
            if (clipped) size = std::max(size, proposed);
            size = std::min(size, r_.dtmax);
            t = end;
            r_.size = size;
            if (t == target) {
                if (target == r_.t1) return kSuccess;
                ++stop;
                target = stop < r_.n_stops ? r_.stops[stop] : r_.t1;
            }
            advance(t);
        }
        return kFailed;
    }

    void deliver() {
        Solution<T>& s = *solution_;
        s.end.assign(y_, y_ + n_);
        r_.steps = static_cast<int64_t>(s.boundaries.size()) - 1;
        r_.boundaries = s.boundaries.data();
        r_.states = s.states.data();
        r_.end = s.end.data();
        r_.solution = solution_.release();
    }

    Request& r_;
    const Method& m_;
    Field<T> field_;
    int64_t n_;
    Watchdog watchdog_;
    std::unique_ptr<Solution<T>> solution_;
    std::vector<T> memory_;
    std::vector<T*> rows_;
    T *y_, *next_, *state_, *error_, *work_;
    double history_[2] = {1.0, 1.0};
    bool taping_;
    std::unique_ptr<T[]> room_;
    T* left_ = nullptr;
    int64_t used_ = 0;
};

// The discrete adjoint: every step from its last stage to its first.
template <class T>
class Reverse {
  public:
    explicit Reverse(PullBack& r)
        : r_(r), m_(*r.method), field_(r.problem), s_(*static_cast<Solution<T>*>(r.solution)), n_(s_.n),
          watchdog_(r.poll), memory_((2 * m_.all + 3) * n_ + field_.backward_work + 1), rows_(m_.all), bars_(m_.all),
          places_(m_.all) {
        for (int64_t i = 0; i < m_.all; ++i) {
            rows_[i] = memory_.data() + i * n_;
            bars_[i] = memory_.data() + (m_.all + i) * n_;
        }
        adjoint_ = memory_.data() + 2 * m_.all * n_;
        state_ = adjoint_ + n_;
        part_ = state_ + n_;
        scratch_ = part_ + n_;
    }

    void run() {
        std::fill(adjoint_, adjoint_ + n_, T(0));
        const T* cotangents = static_cast<const T*>(r_.cotangents);
        int64_t save = static_cast<int64_t>(s_.saved.size()) - 1;
        bool begun = false;
        r_.ended = kSuccess;
        for (int64_t step = static_cast<int64_t>(s_.boundaries.size()) - 2; step >= 0; --step) {
            if (watchdog_.barks()) {
                r_.ended = kInterrupted;
                return;
            }
            int64_t first = save;
            while (first >= 0 && s_.saved[first].step == step) --first;
            bool inner = false;
            for (int64_t i = first + 1; i <= save; ++i) {
                const T* g = cotangents + i * n_;
                if (!any(g)) continue;
                begun = true;
                if (s_.saved[i].theta == 1.0) {
                    for (int64_t j = 0; j < n_; ++j) adjoint_[j] += g[j];
                } else {
                    inner = true;
                }
            }
            if (begun) pull(step, first + 1, save, inner, cotangents);
            save = first;
        }
        for (; save >= 0; --save) {
            const T* g = cotangents + save * n_;
            for (int64_t j = 0; j < n_; ++j) adjoint_[j] += g[j];
        }
        std::memcpy(r_.dy0, adjoint_, n_ * sizeof(T));
    }

  private:
    bool any(const T* g) const {
        for (int64_t j = 0; j < n_; ++j)
            if (g[j] != T(0)) return true;
        return false;
    }

    void pull(int64_t step, int64_t first, int64_t last, bool inner, const T* cotangents) {
        const double t = s_.boundaries[step], end = s_.boundaries[step + 1], h = end - t;
        const int64_t count = inner ? m_.all : m_.needed;
        find(step, t, h, end, count);
        ++r_.steps;
        // Cotangents of the stage derivatives: of the end of the step, and of the states saved within it.
        std::vector<char> reached(count, 0);
        for (int64_t i = 0; i < count; ++i) {
            const T weight = static_cast<T>(i < m_.stages ? h * m_.b[i] : 0.0);
            reached[i] = weight != T(0);
            for (int64_t j = 0; j < n_; ++j) bars_[i][j] = weight * adjoint_[j];
        }
        if (inner) {
            double weights[64];
            for (int64_t k = first; k <= last; ++k) {
                const T* g = cotangents + k * n_;
                if (s_.saved[k].theta == 1.0 || !any(g)) continue;
                Solver<T>::dense_weights(m_, s_.saved[k].theta, weights);
                for (int64_t i = 0; i < count; ++i) add(i, static_cast<T>(h * weights[i]), g, reached);
                for (int64_t j = 0; j < n_; ++j) adjoint_[j] += g[j];
            }
        }
        for (int64_t i = count; i-- > 0;) {
            if (!reached[i]) continue;
            const double time = m_.c[i] == 1.0 ? end : t + m_.c[i] * h;
            T* at = places_[i];
            field_.backward(part_, static_cast<T*>(r_.dp), bars_[i], at, field_.p, field_.constants, time, at + n_,
                            scratch_);
            ++r_.nvjp;
            for (int64_t j = 0; j < n_; ++j) adjoint_[j] += part_[j];
            for (int64_t j = 0; j < i; ++j) add(j, static_cast<T>(h * m_.a[i * m_.all + j]), part_, reached);
        }
    }

    void add(int64_t i, T weight, const T* __restrict g, std::vector<char>& reached) {
        if (weight == T(0)) return;
        reached[i] = 1;
        T* __restrict to = bars_[i];
        for (int64_t j = 0; j < n_; ++j) to[j] += weight * g[j];
    }

    // What the stages left in the forward solve, or, where that was not kept, leave now.
    void find(int64_t step, double t, double h, double end, int64_t count) {
        T* kept = s_.left[step].get();
        if (kept && count <= m_.stages) {
            for (int64_t i = 0; i < count; ++i) places_[i] = kept + i * field_.left;
            if (step == 0) {
                places_[0] = s_.first.get();
            } else if (m_.fsal) {
                places_[0] = s_.left[step - 1].get() + (m_.stages - 1) * field_.left;
            }
            return;
        }
        if (replayed_.empty()) replayed_.resize(m_.all * field_.left);
        const T* y = s_.states.data() + step * n_;
        for (int64_t i = 0; i < count; ++i) {
            const double time = m_.c[i] == 1.0 ? end : t + m_.c[i] * h;
            places_[i] = replayed_.data() + i * field_.left;
            if (i > 0) combine(state_, y, h, m_.a + i * m_.all, rows_.data(), i, n_);
            field_.leave(rows_[i], i > 0 ? state_ : y, time, places_[i]);
            ++r_.nfe;
        }
    }

    PullBack& r_;
    const Method& m_;
    Field<T> field_;
    const Solution<T>& s_;
    int64_t n_;
    Watchdog watchdog_;
    std::vector<T> memory_, replayed_;
    std::vector<T*> rows_, bars_, places_;
    T *adjoint_, *state_, *part_, *scratch_;
};

template <class Work>
int64_t guarded(Work work) {
    try {
        work();
    } catch (const std::bad_alloc&) {
        return kMemory;
    }
    return kSuccess;
}

}  // namespace

extern "C" {

void pynode_solve_f32(Request* r) {
    const int64_t ended = guarded([&] { Solver<float>(*r).run(); });
    if (ended) r->ended = ended;
}

void pynode_solve_f64(Request* r) {
    const int64_t ended = guarded([&] { Solver<double>(*r).run(); });
    if (ended) r->ended = ended;
}

void pynode_pull_back_f32(PullBack* r) {
    const int64_t ended = guarded([&] { Reverse<float>(*r).run(); });
    if (ended) r->ended = ended;
}

void pynode_pull_back_f64(PullBack* r) {
    const int64_t ended = guarded([&] { Reverse<double>(*r).run(); });
    if (ended) r->ended = ended;
}

void pynode_drop_f32(void* solution) { delete static_cast<Solution<float>*>(solution); }
void pynode_drop_f64(void* solution) { delete static_cast<Solution<double>*>(solution); }

int64_t pynode_sizes(int64_t which) {
    return which == 0 ? sizeof(Method) : which == 1 ? sizeof(Problem) : which == 2 ? sizeof(Request) : sizeof(PullBack);
}
}
