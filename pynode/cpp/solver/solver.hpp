// The loop of pynode/native/loop.py.

// A save point: in which step it lies and how far along it.
struct Saved {
    int64_t step;  // -1: the initial state
    double theta;  // 1 exactly: the end of the step
};

template <class T>
struct Solution {
    int64_t n = 0, stages = 0;
    std::vector<T> parameters;
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
        : r_(r), m_(*r.method), solution_(gathered(r)), field_(r.problem, solution_->parameters.data()),
          n_(r.problem.n), watchdog_(*r.python),
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
        r_.ended = kFailed;
        if (finite(rows_[0], n_)) r_.ended = r_.mesh ? fixed() : adaptive();
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

    // A positive number to a millionth, as in controllers.py.
    static double steady(double size) {
        int exponent;
        const double mantissa = std::frexp(size, &exponent);
        return std::ldexp(std::nearbyint(mantissa * 1048576.0), exponent - 20);
    }

    double filtered(double reciprocal) const {
        const double k = static_cast<double>(m_.error_order);
        const double p = r_.pcoeff / k, i = r_.icoeff / k, d = r_.dcoeff / k;
        double factor = std::pow(reciprocal, p + i + d);
        if (p != 0.0 || d != 0.0)
            factor *= std::pow(history_[0], -(p + 2 * d)) * std::pow(history_[1], d);
        return factor;
    }

    // PredictiveController of pynode/controllers.py: history holds the last reciprocal ratio, and what the step size
    // was multiplied by since.
    bool predict(double ratio, double& factor) {
        const bool fresh = history_[0] == 1.0 && history_[1] == 1.0;
        const double power = 1.0 / m_.error_order, before = history_[0], growth = fresh ? 0.0 : history_[1];
        if (!(ratio <= 1.0)) {
            factor = r_.factormin;
            if (!std::isfinite(ratio)) {  // no error to learn from
                history_[0] = history_[1] = 1.0;
                return false;
            }
            factor = std::min(r_.safety, std::max(r_.factormin, steady(r_.safety * std::pow(ratio, -power))));
            if (!fresh) history_[1] = growth * factor;
            return false;
        }
        const double reciprocal = ratio > 1e-10 ? 1.0 / ratio : 1e10;
        const double own = std::pow(reciprocal, power);
        factor = own;
        if (growth != 0.0) factor = std::min(factor, growth * std::pow(reciprocal * reciprocal / before, power));
        factor = std::min(r_.factormax, std::max(r_.factormin, steady(r_.safety * factor)));
        if (factor >= 1.0 && factor < r_.deadband) factor = 1.0;
        // Nothing is predicted from a step so short that its error is rounding for the most part.
        const bool far = ratio <= 1e-10 || r_.safety * own >= r_.factormax;
        history_[0] = far ? 1.0 : reciprocal;
        history_[1] = far ? 1.0 : factor;
        return true;
    }

    bool propose(double ratio, double& factor) {
        if (r_.deadband > 0.0) return predict(ratio, factor);
        if (!(ratio <= 1.0)) {
            factor = r_.factormin;
            if (std::isfinite(ratio))
                factor = std::min(r_.safety, std::max(r_.factormin, steady(r_.safety * filtered(1.0 / ratio))));
            return false;
        }
        const double reciprocal = ratio > 1e-10 ? 1.0 / ratio : 1e10;
        factor = std::min(r_.factormax, std::max(1.0, steady(r_.safety * filtered(reciprocal))));
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
        const double size = std::min(steady(std::min(100.0 * h0, h1)), std::abs(span));
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

    static Solution<T>* gathered(const Request& r) {
        std::unique_ptr<Solution<T>> s(new Solution<T>);
        s->parameters.resize(std::max<int64_t>(r.problem.parameters, 1));
        T* to = s->parameters.data();
        for (int64_t i = 0; i < r.n_parts; to += r.lengths[i++])
            std::memcpy(to, r.parts[i], r.lengths[i] * sizeof(T));
        return s.release();
    }

    Request& r_;
    const Method& m_;
    std::unique_ptr<Solution<T>> solution_;
    Field<T> field_;
    int64_t n_;
    Watchdog watchdog_;
    std::vector<T> memory_;
    std::vector<T*> rows_;
    T *y_, *next_, *state_, *error_, *work_;
    double history_[2] = {1.0, 1.0};
    bool taping_;
    std::unique_ptr<T[]> room_;
    T* left_ = nullptr;
    int64_t used_ = 0;
};
