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
__attribute__((target("sse4.2"))) uint32_t by_instruction(const uint8_t* p, size_t bytes) {
  uint64_t crc = 0xffffffff;
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
