// What Python calls.

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
