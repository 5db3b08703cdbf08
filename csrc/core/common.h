// Vocabulary shared by every floor: status codes, data types, integer helpers, little-endian
// access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GCT_HD __host__ __device__
#else
#define GCT_HD
#endif

namespace gct {

// Elements that share one scale class. Fixed by the wire format.
constexpr int kBlock = 256;
// Interleaved rANS states; element i of a block belongs to lane i % kLanes. Fixed by the wire
// format.
constexpr int kLanes = 32;

// What went wrong below the torch floor. status_message() in codec.h gives the sentence for users.
enum class Status : int32_t {
  kOk = 0,
  kBadArgument,   // a caller's mistake: null pointer, negative size, contradictory parameters
  kTooSmall,      // the output buffer can't hold the result; nothing past its end was written
  kBadMagic,      // not a gct segment
  kBadVersion,    // a segment of another wire version
  kBadTables,     // written with other code tables than this build carries
  kBadHeader,     // a header field outside its range, or fields that contradict each other
  kTruncated,     // the segment ends before its header says
  kCorrupt,       // the payload doesn't decode to the announced number of symbols
  kSizeMismatch,  // a valid segment, but of another number of elements than the caller expects
  kUnsupported,   // a valid segment with parts that this decoder (a GPU's) doesn't know
};

enum class DType : uint8_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

inline int dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
    default:
      return 2;
  }
}

GCT_HD constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
GCT_HD constexpr int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

constexpr bool kLittleEndian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;

// The wire is little-endian whatever the host is; compilers turn these loops into one move.
template <typename T>
GCT_HD inline T load_le(const uint8_t* p) {
  T v = 0;
  for (size_t i = 0; i < sizeof(T); ++i) v = static_cast<T>(v | (static_cast<T>(p[i]) << (8 * i)));
  return v;
}

template <typename T>
GCT_HD inline void store_le(uint8_t* p, T v) {
  for (size_t i = 0; i < sizeof(T); ++i) p[i] = static_cast<uint8_t>(v >> (8 * i));
}

GCT_HD inline uint32_t float_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

GCT_HD inline float bits_float(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

}  // namespace gct
