// Codes of 1 to 8 bits in bytes. One body, compiled once for every instruction set that has
// kernels: eight codes are a 64-bit word, and loops over words are vectorized by the compiler.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/common.h"

namespace gct {
namespace {

// Moves the low halves of neighbouring fields together: fields of `width` bits hold `used`, then
// fields of twice the width hold twice as many.
inline uint64_t join(uint64_t x, int width, int used, uint64_t low) {
  return (x & low) | ((x & ~low) >> (width - used));
}
constexpr uint64_t kBytes = 0x00ff00ff00ff00ffull;
constexpr uint64_t kWords = 0x0000ffff0000ffffull;
constexpr uint64_t kHalf = 0x00000000ffffffffull;

template <int bits>
uint64_t join_eight(uint64_t codes) {
  codes = join(codes, 8, bits, kBytes);
  codes = join(codes, 16, 2 * bits, kWords);
  return join(codes, 32, 4 * bits, kHalf);
}

// Fields of 4, then 2, then one of the eight codes.
template <int bits>
uint64_t part_eight(uint64_t x) {
  constexpr uint64_t four = (1ull << (4 * bits)) - 1;
  constexpr uint64_t two = ((1ull << (2 * bits)) - 1) * 0x0000000100000001ull;
  constexpr uint64_t one = ((1ull << bits) - 1) * 0x0001000100010001ull;
  x = (x & four) | (((x >> (4 * bits)) & four) << 32);
  x = (x & two) | (((x >> (2 * bits)) & two) << 16);
  return (x & one) | (((x >> bits) & one) << 8);
}

// The low `count` bytes of a word from and to memory; all eight in one move.
inline uint64_t read_bytes(const uint8_t* p, int count) {
  uint64_t x = 0;
  if (kLittleEndian && count == 8) {
    memcpy(&x, p, 8);
  } else if (kLittleEndian && count == 4) {
    uint32_t half;
    memcpy(&half, p, 4);
    x = half;
  } else {
    for (int j = 0; j < count; ++j) x |= uint64_t{p[j]} << (8 * j);
  }
  return x;
}

inline void write_bytes(uint64_t x, int count, uint8_t* p) {
  if (kLittleEndian && count == 8) {
    memcpy(p, &x, 8);
  } else if (kLittleEndian && count == 4) {
    const uint32_t half = static_cast<uint32_t>(x);
    memcpy(p, &half, 4);
  } else {
    for (int j = 0; j < count; ++j) p[j] = static_cast<uint8_t>(x >> (8 * j));
  }
}

template <int bits>
void pack_bits(const uint8_t* codes, int n, uint8_t* out) {
  const int groups = n / 8, rest = n % 8;
  for (int g = 0; g < groups; ++g)
    write_bytes(join_eight<bits>(read_bytes(codes + 8 * g, 8)), bits, out + bits * g);
  write_bytes(join_eight<bits>(read_bytes(codes + 8 * groups, rest)), (rest * bits + 7) / 8,
              out + bits * groups);
}

template <int bits>
void unpack_bits(const uint8_t* data, int n, uint8_t* codes) {
  const int groups = n / 8, rest = n % 8;
  for (int g = 0; g < groups; ++g)
    write_bytes(part_eight<bits>(read_bytes(data + bits * g, bits)), 8, codes + 8 * g);
  const int bytes = (rest * bits + 7) / 8;
  write_bytes(part_eight<bits>(read_bytes(data + bits * groups, bytes)), rest, codes + 8 * groups);
}

void unpack(const uint8_t* data, int n, int bits, uint8_t* codes) {
  static constexpr void (*widths[])(const uint8_t*, int, uint8_t*) = {
      unpack_bits<1>, unpack_bits<2>, unpack_bits<3>, unpack_bits<4>,
      unpack_bits<5>, unpack_bits<6>, unpack_bits<7>, unpack_bits<8>};
  widths[bits - 1](data, n, codes);
}

}  // namespace
}  // namespace gct
