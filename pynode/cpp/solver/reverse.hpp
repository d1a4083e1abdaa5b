// The pullback of pynode/native/adjoints/checkpointed.py.

// The discrete adjoint: every step from its last stage to its first.
template <class T>
class Reverse {
  public:
    explicit Reverse(PullBack& r)
        : r_(r), m_(*r.method), s_(*static_cast<Solution<T>*>(r.solution)),
          field_(r.problem, s_.parameters.data()), n_(s_.n),
          watchdog_(*r.python), memory_(new T[(2 * m_.all + 3) * n_ + field_.backward_work + 1]), rows_(m_.all), bars_(m_.all),
          places_(m_.all) {
        for (int64_t i = 0; i < m_.all; ++i) {
            rows_[i] = memory_.get() + i * n_;
            bars_[i] = memory_.get() + (m_.all + i) * n_;
        }
        adjoint_ = memory_.get() + 2 * m_.all * n_;
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
        r_.finite = finite(adjoint_, n_) && finite(static_cast<const T*>(r_.dp), r_.problem.parameters);
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
        if (!replayed_) replayed_.reset(new T[m_.all * field_.left]);
        const T* y = s_.states.data() + step * n_;
        for (int64_t i = 0; i < count; ++i) {
            const double time = m_.c[i] == 1.0 ? end : t + m_.c[i] * h;
            places_[i] = replayed_.get() + i * field_.left;
            if (i > 0) combine(state_, y, h, m_.a + i * m_.all, rows_.data(), i, n_);
            field_.leave(rows_[i], i > 0 ? state_ : y, time, places_[i]);
            ++r_.nfe;
        }
    }

    PullBack& r_;
    const Method& m_;
    const Solution<T>& s_;
    Field<T> field_;
    int64_t n_;
    Watchdog watchdog_;
    std::unique_ptr<T[]> memory_, replayed_;
    std::vector<T*> rows_, bars_, places_;
    T *adjoint_, *state_, *part_, *scratch_;
};
