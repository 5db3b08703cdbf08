// Bits, least significant first, and exp-Golomb codes on them. The reader never passes its end: it
// returns zeros and remembers.
#pragma once

#include <vector>

#include "core/common.h"

namespace gct {

// Sink: takes a byte at a time by operator().
template <typename Sink>
class BasicBitWriter {
 public:
  GCT_HD explicit BasicBitWriter(Sink sink) : sink_(sink) {}

  // The low `count` bits of value, count <= 32.
  GCT_HD void put(uint32_t value, int count) {
    if (count == 0) return;
    pending_ |= static_cast<uint64_t>(value & (0xffffffffu >> (32 - count))) << filled_;
    filled_ += count;
    while (filled_ >= 8) {
      sink_(static_cast<uint8_t>(pending_));
      pending_ >>= 8;
      filled_ -= 8;
    }
  }

  // The first `count` bits of `bytes`, words at a time; for sinks that extend.
  void put_all(const uint8_t* bytes, int count) {
    uint8_t* out = sink_.extend(static_cast<size_t>(count / 64 * 8));
    for (; count >= 64; count -= 64, bytes += 8, out += 8) {
      const uint64_t word = load_le<uint64_t>(bytes);
      store_le<uint64_t>(out, pending_ | word << filled_);
      pending_ = filled_ > 0 ? word >> (64 - filled_) : 0;
    }
    for (; count > 0; count -= 8) put(*bytes++, count < 8 ? count : 8);
  }

  GCT_HD void finish() {
    if (filled_ > 0) sink_(static_cast<uint8_t>(pending_));
    pending_ = 0;
    filled_ = 0;
  }

  GCT_HD const Sink& sink() const { return sink_; }

 private:
  Sink sink_;
  uint64_t pending_ = 0;
  int filled_ = 0;  // under 8 between calls
};

class VectorSink {
 public:
  VectorSink(std::vector<uint8_t>* bytes) : bytes_(bytes) {}
  void operator()(uint8_t byte) { bytes_->push_back(byte); }
  // Where the next `count` bytes go; valid up to the next one that is put.
  uint8_t* extend(size_t count) {
    bytes_->resize(bytes_->size() + count);
    return bytes_->data() + bytes_->size() - count;
  }

 private:
  std::vector<uint8_t>* bytes_;
};

using BitWriter = BasicBitWriter<VectorSink>;

class BitReader {
 public:
  GCT_HD BitReader(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  GCT_HD uint32_t get(int count) {
    while (filled_ < count) {
      if (data_ == end_) {
        overrun_ = true;
        return 0;
      }
      pending_ |= static_cast<uint64_t>(*data_++) << filled_;
      filled_ += 8;
    }
    if (count == 0) return 0;
    const uint32_t value = static_cast<uint32_t>(pending_) & (0xffffffffu >> (32 - count));
    pending_ >>= count;
    filled_ -= count;
    return value;
  }

  // The next `count` bits as bytes, words at a time.
  void get_all(int count, uint8_t* bytes) {
    for (; count >= 64 && end_ - data_ >= 8; count -= 64, bytes += 8, data_ += 8) {
      const uint64_t word = load_le<uint64_t>(data_);
      store_le<uint64_t>(bytes, pending_ | word << filled_);
      pending_ = filled_ > 0 ? word >> (64 - filled_) : 0;
    }
    for (; count > 0; count -= 8) *bytes++ = static_cast<uint8_t>(get(count < 8 ? count : 8));
  }

  GCT_HD bool overrun() const { return overrun_; }
  // Whether only the last byte's padding, all zeros, is left.
  GCT_HD bool exhausted() const { return data_ == end_ && filled_ < 8 && pending_ == 0; }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
  uint64_t pending_ = 0;
  int filled_ = 0;  // under 8 between calls
  bool overrun_ = false;
};

// Exp-Golomb code of order k (Teuhola 1978): v + 2^k in n + 1 bits, after n - k zeros.
// Written from the low end: n - k zero bits, a one bit, then the n low bits of v + 2^k.
GCT_HD inline int floor_log2(uint64_t v) {  // v > 0
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(static_cast<long long>(v));
#else
  return 63 - __builtin_clzll(v);
#endif
}

GCT_HD inline int golomb_bits(uint32_t value, int order) {
  return 2 * floor_log2(static_cast<uint64_t>(value) + (1ull << order)) + 1 - order;
}

template <typename Sink>
GCT_HD inline void put_golomb(BasicBitWriter<Sink>* out, uint32_t value, int order) {
  const uint64_t v = static_cast<uint64_t>(value) + (1ull << order);
  const int n = floor_log2(v);
  out->put(0, n - order);
  out->put(1, 1);
  out->put(static_cast<uint32_t>(v & ((1ull << n) - 1)), n);
}

// False on a prefix that no 31-bit value has or at the end of the bits.
GCT_HD inline bool get_golomb(BitReader* in, int order, uint32_t* value) {
  int n = order;
  while (in->get(1) == 0) {
    if (in->overrun() || ++n > 31) return false;
  }
  const uint64_t v = (1ull << n) | in->get(n);
  *value = static_cast<uint32_t>(v - (1ull << order));
  return !in->overrun();
}

GCT_HD inline uint32_t zigzag(int32_t v) {
  return (static_cast<uint32_t>(v) << 1) ^ static_cast<uint32_t>(v >> 31);
}
GCT_HD inline int32_t unzigzag(uint32_t u) {
  return static_cast<int32_t>(u >> 1) ^ -static_cast<int32_t>(u & 1);
}

}  // namespace gct
