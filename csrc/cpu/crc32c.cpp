#include "cpu/crc32c.h"

#include <array>

#include "core/common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gct {

namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // bits reversed
constexpr size_t kWord = 8;

// tables[k][b]: what byte b does to the remainder when k bytes follow it.
using Tables = std::array<std::array<uint32_t, 256>, kWord>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t rest = byte;
    for (int bit = 0; bit < 8; ++bit) rest = (rest >> 1) ^ (rest & 1 ? kPolynomial : 0);
    tables[0][byte] = rest;
  }
  for (size_t k = 1; k < kWord; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[k - 1][byte];
      tables[k][byte] = (before >> 8) ^ tables[0][before & 255];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

uint32_t add_byte(uint32_t crc, uint8_t byte) {
  return (crc >> 8) ^ kTables[0][(crc ^ byte) & 255];
}

uint32_t add_word(uint32_t crc, uint64_t word) {
  word ^= crc;
  uint32_t result = 0;
  for (size_t i = 0; i < kWord; ++i) result ^= kTables[kWord - 1 - i][(word >> (8 * i)) & 255];
  return result;
}

#if defined(__x86_64__)
// The instruction takes three cycles and one can begin in each: three parts of the data at once.
constexpr size_t kPart = 1024;

// shift[k][b]: what byte k of a remainder, b, becomes when kPart bytes of zeros follow.
using Shift = std::array<std::array<uint32_t, 256>, sizeof(uint32_t)>;

constexpr Shift make_shift() {
  Shift shift{};
  for (uint32_t bit = 0; bit < 32; ++bit) {
    uint32_t rest = uint32_t{1} << bit;
    for (size_t i = 0; i < kPart; ++i) rest = (rest >> 8) ^ kTables[0][rest & 255];
    for (uint32_t byte = 0; byte < 256; ++byte) {
      if (byte >> (bit % 8) & 1) shift[bit / 8][byte] ^= rest;
    }
  }
  return shift;
}

constexpr Shift kShift = make_shift();

// The remainder of a part after that of what stands before it.
uint64_t append(uint64_t before, uint64_t part) {
  for (size_t k = 0; k < kShift.size(); ++k) part ^= kShift[k][(before >> (8 * k)) & 255];
  return part;
}

__attribute__((target("sse4.2"))) uint32_t by_instruction(const uint8_t* p, size_t bytes) {
  uint64_t crc = 0xffffffff;
  for (; bytes >= 3 * kPart; p += 3 * kPart, bytes -= 3 * kPart) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (const uint8_t* q = p; q < p + kPart; q += kWord) {
      crc = _mm_crc32_u64(crc, load_le<uint64_t>(q));
      second = _mm_crc32_u64(second, load_le<uint64_t>(q + kPart));
      third = _mm_crc32_u64(third, load_le<uint64_t>(q + 2 * kPart));
    }
    crc = append(append(crc, second), third);
  }
  for (; bytes >= kWord; p += kWord, bytes -= kWord) crc = _mm_crc32_u64(crc, load_le<uint64_t>(p));
  auto rest = static_cast<uint32_t>(crc);
  for (; bytes > 0; ++p, --bytes) rest = _mm_crc32_u8(rest, *p);
  return ~rest;
}

bool has_instruction() {
  static const bool has = __builtin_cpu_supports("sse4.2");
  return has;
}
#endif

}  // namespace

uint32_t crc32c_by_tables(const void* data, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint32_t crc = 0xffffffff;
  for (; bytes >= kWord; p += kWord, bytes -= kWord) crc = add_word(crc, load_le<uint64_t>(p));
  for (; bytes > 0; ++p, --bytes) crc = add_byte(crc, *p);
  return ~crc;
}

uint32_t crc32c(const void* data, size_t bytes) {
#if defined(__x86_64__)
  if (has_instruction()) return by_instruction(static_cast<const uint8_t*>(data), bytes);
#endif
  return crc32c_by_tables(data, bytes);
}

}  // namespace gct
