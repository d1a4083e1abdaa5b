// Whole solves by explicit Runge-Kutta methods, and the discrete adjoint of the steps they took.
//
// The same algorithm as pynode/native/loop.py, step for step: what is decided there is decided here, from the same
// numbers in double precision. The field comes as three functions (pynode/cpp/emit.py), the method as a tableau.
// Whatever ends other than well is only told: the solve is then repeated in Python, whose messages explain it.
//
// The files are one text, in the order of pynode/cpp/driver.py, which has these structures too.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <iterator>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTiny = 1e-30;  // as in error_norm.py: sums of squares below it have lost digits

struct Method {
    int64_t stages, all, needed, fsal, error_order, degree;
    const double *c, *a, *b, *error, *error_low, *dense;  // a: all rows of `all` numbers; dense: all rows of `degree`
};

struct Problem {
    int64_t n, parameters, f_work, joint_work, backward_work;
    void *f, *forward, *backward;
    void* const* constants;
};

// PyEval_SaveThread, PyEval_RestoreThread and PyErr_CheckSignals.
struct Python {
    void* (*save)();
    void (*restore)(void*);
    int (*signals)();
};

struct Request {
    Problem problem;
    const Method* method;
    int64_t measured;  // leading channels that count in the error norm
    double pcoeff, icoeff, dcoeff, safety, factormin, factormax;
    double deadband;  // of the predictive controller; 0: the filter of the coefficients
    double t0, t1;
    const void *y0, *derivative;
    const void* const* parts;  // the parameters, one after the other, and how many numbers each has
    const int64_t* lengths;
    int64_t n_parts;
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
    const Python* python;
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
    const Python* python;
    // Results
    int64_t ended, nfe, nvjp, steps, finite;
};
