// Memory that is reused from slice to slice and from step to step: grows to the largest request,
// never shrinks.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <cstdint>

namespace gct {

// A byte tensor, because process groups take tensors.
class ByteBuffer {
 public:
  // At least `bytes` of memory; what it held before is lost if it has to grow.
  uint8_t* reserve(int64_t bytes) {
    if (bytes > capacity_.load(std::memory_order_relaxed)) {
      bytes_ = at::Tensor();  // first give back, then take
      bytes_ = at::empty({bytes}, at::TensorOptions().dtype(at::kByte));
      capacity_.store(bytes, std::memory_order_relaxed);
    }
    return data();
  }

  uint8_t* data() const { return bytes_.defined() ? bytes_.data_ptr<uint8_t>() : nullptr; }

  // `bytes` from `begin` on as a 1-D tensor that shares this memory.
  at::Tensor view(int64_t begin, int64_t bytes) const {
    return bytes_.defined() ? bytes_.narrow(0, begin, bytes)
                            : at::empty({0}, at::TensorOptions().dtype(at::kByte));
  }

  // May be asked from any thread.
  int64_t capacity_bytes() const { return capacity_.load(std::memory_order_relaxed); }

 private:
  at::Tensor bytes_;
  std::atomic<int64_t> capacity_{0};
};

// The same for float32 scratch; torch aligns its memory to 64 bytes.
class FloatBuffer {
 public:
  float* reserve(int64_t numel) {
    return reinterpret_cast<float*>(buffer_.reserve(numel * int64_t{sizeof(float)}));
  }
  int64_t capacity_bytes() const { return buffer_.capacity_bytes(); }

 private:
  ByteBuffer buffer_;
};

}  // namespace gct
