// Where packed codes lie: which bytes a lane needs of those that are loaded at once, and how far
// down its code must be shifted.
#pragma once

#include <cstdint>

#include "cpu/shuffles.h"

namespace gct {
namespace {

// Of sixteen codes of kBits bits each, the first of them in the lowest bits of the first byte.
template <int kBits>
struct CodePlaces {
  static constexpr int kCodes = 16;
  static constexpr uint32_t kMask = (1u << kBits) - 1;
  alignas(64) uint8_t bytes[kCodes][4];  // of 32 bits: a code's one or two bytes, then none
  alignas(64) uint32_t shift[kCodes];

  constexpr CodePlaces() : bytes(), shift() {
    for (int i = 0; i < kCodes; ++i) {
      const int first = i * kBits / 8, last = (i * kBits + kBits - 1) / 8;
      for (int byte = 0; byte < 4; ++byte)
        bytes[i][byte] = first + byte <= last ? static_cast<uint8_t>(first + byte) : kNoByte;
      shift[i] = static_cast<uint32_t>(i * kBits % 8);
    }
  }
};

template <int kBits>
constexpr CodePlaces<kBits> kCodePlaces;

// The bytes in use of 16 that hold two words of eight packed codes each, together; twice.
template <int kBits>
struct UsedBytes {
  alignas(32) uint8_t place[32];

  constexpr UsedBytes() : place() {
    for (int i = 0; i < 32; ++i) {
      const int k = i % 16;
      place[i] = static_cast<uint8_t>(k < kBits ? k : k < 2 * kBits ? 8 + k - kBits : kNoByte);
    }
  }
};

template <int kBits>
constexpr UsedBytes<kBits> kUsedBytes;

}  // namespace
}  // namespace gct
