// Runs the kernels' bodies on the CPU: a warp's lanes are loops between its collectives, values by
// lane are arrays of 32. For tests, and for a place to debug them; csrc/cuda/device_warp.cuh is the
// same on a GPU.
#pragma once

#include <cstring>

#include "core/common.h"

namespace gct::gpu {

class HostWarp {
 public:
  // A value of each lane.
  template <typename T>
  struct Lanes {
    T value[kLanes] = {};
    T& operator[](int lane) { return value[lane]; }
    const T& operator[](int lane) const { return value[lane]; }
  };

  // What every lane does by itself. No lane sees another's writes to memory before sync().
  template <typename F>
  void each(F f) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  }
  // What one lane does for all.
  template <typename F>
  void leader(F f) {
    f();
  }
  void sync() {}

  uint32_t ballot(const Lanes<bool>& flags) {
    uint32_t mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= static_cast<uint32_t>(flags[lane]) << lane;
    return mask;
  }
  template <typename T>
  T broadcast(const Lanes<T>& values, int lane) {
    return values[lane];
  }
  // result[lane] = values[from[lane]]
  template <typename T>
  Lanes<T> shuffle(const Lanes<T>& values, const Lanes<int>& from) {
    Lanes<T> result;
    for (int lane = 0; lane < kLanes; ++lane) result[lane] = values[from[lane]];
    return result;
  }
  // Lanes pairwise, halving their number each time, as sums of moments are defined.
  template <typename T, typename Op>
  T fold(Lanes<T> values, Op op) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int lane = 0; lane < width; ++lane)
        values[lane] = op(values[lane], values[lane + width]);
    }
    return values[0];
  }
  // values[lane] becomes the sum of the lanes before it; returns the sum of all.
  template <typename T>
  T scan(Lanes<T>* values) {
    T sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const T own = (*values)[lane];
      (*values)[lane] = sum;
      sum += own;
    }
    return sum;
  }
  void atomic_add(int64_t* sum, int64_t value) { *sum += value; }
};

// One launch: all tasks of a kernel, in an order that tests choose, since none may matter.
class HostLauncher {
 public:
  enum class Order { kForward, kBackward, kScattered };

  explicit HostLauncher(Order order = Order::kForward) : order_(order) {}

  template <typename Body, typename Batch>
  void run(const Batch& batch, int64_t tasks) {
    for (int64_t i = 0; i < tasks; ++i) {
      HostWarp warp;
      Body::run(warp, batch, task(i, tasks));
    }
  }
  void zero(void* memory, size_t bytes) {
    if (bytes > 0) std::memset(memory, 0, bytes);
  }

 private:
  int64_t task(int64_t i, int64_t tasks) const {
    if (order_ == Order::kForward) return i;
    if (order_ == Order::kBackward) return tasks - 1 - i;
    constexpr int64_t kStride = 7919;  // prime: takes every task once, but for multiples of it
    return tasks % kStride == 0 ? i : i * kStride % tasks;
  }

  Order order_;
};

}  // namespace gct::gpu
