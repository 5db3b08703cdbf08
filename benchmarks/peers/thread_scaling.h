// One thread against all of a pool's, in turn, beside work that shares nothing: what the machine
// allows. Two processors of a virtual machine may be one core's two threads, or be lent to others.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/thread_pool.h"

namespace scaling {

struct Task {
  const char* name;
  std::function<void(bool threaded)> run;
};

// Many independent sums: as many operations as the core can begin.
inline double arithmetic(int64_t steps) {
  double sums[16] = {};
  for (int64_t i = 0; i < steps; ++i) {
    for (double& sum : sums) sum = sum * 0.999 + 1.0;
  }
  return sums[0] + sums[15];
}

// One number through multiplications that wait for each other: most of a core has nothing to do.
inline uint64_t chain(int64_t steps) {
  uint64_t x = 1;
  for (int64_t i = 0; i < steps; ++i) x = x * 6364136223846793005ull + 1442695040888963407ull;
  return x;
}

// Work in one part for each thread of the pool, on one thread or on all: long enough that to wake
// a thread is nothing.
class Controls {
 public:
  explicit Controls(gct::ThreadPool* pool) : pool_(pool), memory_(1u << 25, 1) {}

  std::vector<Task> tasks() {
    return {
        {"arithmetic", [this](bool all) { run(all, [](int64_t) { return arithmetic(5000000); }); }},
        {"chain", [this](bool all) { run(all, [](int64_t) { return chain(10000000); }); }},
        {"read", [this](bool all) { run(all, [this](int64_t part) { return read(part); }); }}};
  }

 private:
  uint64_t read(int64_t part) const {
    const size_t parts = static_cast<size_t>(pool_->size()), n = memory_.size() / parts;
    uint64_t sum = 0;
    for (size_t i = n * static_cast<size_t>(part); i < n * static_cast<size_t>(part + 1); ++i)
      sum += memory_[i];
    return sum;
  }

  template <typename F>
  void run(bool threaded, F part) {
    const auto body = [&](int64_t i, int) {
      volatile auto result = part(i);  // which the compiler must work out then
      (void)result;
    };
    if (threaded) {
      pool_->parallel_for(pool_->size(), body);
    } else {
      for (int64_t i = 0; i < pool_->size(); ++i) body(i, 0);
    }
  }

  gct::ThreadPool* pool_;
  const std::vector<uint64_t> memory_;  // 256 MiB
};

inline double time_of(const Task& task, bool threaded, int calls) {
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < calls; ++i) task.run(threaded);
  const auto time = std::chrono::steady_clock::now() - begin;
  return std::chrono::duration<double>(time).count() / calls;
}

inline std::string list(const std::vector<double>& seconds) {
  std::ostringstream text;
  for (size_t i = 0; i < seconds.size(); ++i) text << (i == 0 ? "" : ", ") << seconds[i];
  return "[" + text.str() + "]";
}

// As JSON: of each task and control the seconds of a call, by repeat, on one thread and on all.
inline std::string seconds(std::vector<Task> tasks, int repeats, gct::ThreadPool* pool) {
  constexpr double kLeastSeconds = 0.02;  // of one figure, so that neither clock nor tick matters
  Controls controls(pool);
  for (Task& task : controls.tasks()) tasks.push_back(task);
  std::vector<int> calls;
  for (const Task& task : tasks) {
    time_of(task, false, 1);
    time_of(task, true, 1);
    calls.push_back(std::max(1, static_cast<int>(kLeastSeconds / time_of(task, true, 1))));
  }
  std::vector<std::vector<double>> one(tasks.size()), all(tasks.size());
  for (int repeat = 0; repeat < repeats; ++repeat) {
    for (size_t i = 0; i < tasks.size(); ++i) {
      for (int turn = 0; turn < 2; ++turn) {  // neither is always the first
        const bool threaded = turn != repeat % 2;
        (threaded ? all : one)[i].push_back(time_of(tasks[i], threaded, calls[i]));
      }
    }
  }
  std::ostringstream text;
  for (size_t i = 0; i < tasks.size(); ++i) {
    text << (i == 0 ? "{" : ", ") << '"' << tasks[i].name << "\": {\"one\": " << list(one[i])
         << ", \"all\": " << list(all[i]) << "}";
  }
  return text.str() + "}";
}

}  // namespace scaling
