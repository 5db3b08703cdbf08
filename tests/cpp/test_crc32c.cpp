// The checksum against RFC 3720's examples, its definition bit by bit, and itself.
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/crc32c.h"

namespace {

using gct::crc32c;
using gct::crc32c_by_tables;

// RFC 3720, appendix B.4, and the usual "123456789".
void test_known_values() {
  std::vector<uint8_t> bytes(32, 0);
  CHECK(crc32c(bytes.data(), 32) == 0x8a9136aa, crc32c(bytes.data(), 32));
  bytes.assign(32, 0xff);
  CHECK(crc32c(bytes.data(), 32) == 0x62a8ab43, crc32c(bytes.data(), 32));
  for (uint8_t i = 0; i < 32; ++i) bytes[i] = i;
  CHECK(crc32c(bytes.data(), 32) == 0x46dd794e, crc32c(bytes.data(), 32));
  CHECK(crc32c("123456789", 9) == 0xe3069283, crc32c("123456789", 9));
  CHECK(crc32c(nullptr, 0) == 0);
}

uint32_t bit_by_bit(const uint8_t* p, size_t bytes) {
  uint32_t crc = 0xffffffff;
  for (size_t i = 0; i < bytes; ++i) {
    crc ^= p[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

void test_lengths_and_alignments() {
  gct::test::Random random(1);
  std::vector<uint8_t> bytes(7000);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.bits() >> 56);
  for (size_t begin = 0; begin < 9; ++begin) {
    for (size_t length = 0; length < 500; length += 1 + length / 40) {
      const uint8_t* p = bytes.data() + begin;
      const uint32_t expected = bit_by_bit(p, length);
      CHECK(crc32c(p, length) == expected, begin, length);
      CHECK(crc32c_by_tables(p, length) == expected, begin, length);
    }
    // Of this length on, three parts are taken at once.
    for (const size_t length : {3071, 3072, 3073, 3080, 6143, 6144, 6900}) {
      CHECK(crc32c(bytes.data() + begin, length) == bit_by_bit(bytes.data() + begin, length), begin,
            length);
    }
  }
}

void test_every_flipped_bit_is_noticed() {
  std::vector<uint8_t> bytes(100, 0x5a);
  const uint32_t before = crc32c(bytes.data(), bytes.size());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(crc32c(bytes.data(), bytes.size()) != before, bit);
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
  }
}

}  // namespace

int main() {
  test_known_values();
  test_lengths_and_alignments();
  test_every_flipped_bit_is_noticed();
  return gct::test::result();
}
