// The norm of pynode/native/error_norm.py.

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
#pragma omp simd reduction(+ : sum)
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
