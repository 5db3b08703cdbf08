// Bits and exp-Golomb codes: literal code words, the largest values, and the ends of the data.
#include <string>
#include <vector>

#include "check.h"
#include "core/bit_io.h"

namespace gct {
namespace {

// Bits in the order in which the wire has them, as text.
std::string bits_of(const std::vector<uint8_t>& bytes, int count) {
  std::string text;
  for (int i = 0; i < count; ++i)
    text += ((bytes[static_cast<size_t>(i / 8)] >> (i % 8)) & 1) != 0 ? '1' : '0';
  return text;
}

std::vector<uint8_t> golomb(uint32_t value, int order) {
  std::vector<uint8_t> bytes;
  BitWriter out(&bytes);
  put_golomb(&out, value, order);
  out.finish();
  return bytes;
}

// Written by hand: v + 2^k in binary, its leading one after (number of lower bits - k) zeros, then
// the lower bits from the least significant one.
void test_literal_code_words() {
  const char* const expected[4][8] = {
      {"1", "010", "011", "00100", "00110", "00101", "00111", "0001000"},
      {"10", "11", "0100", "0110", "0101", "0111", "001000", "001100"},
      {"100", "110", "101", "111", "01000", "01100", "01010", "01110"},
      {"1000", "1100", "1010", "1110", "1001", "1101", "1011", "1111"},
  };
  for (int order = 0; order < 4; ++order) {
    for (uint32_t value = 0; value < 8; ++value) {
      const std::string word = expected[order][value];
      const std::vector<uint8_t> bytes = golomb(value, order);
      CHECK(golomb_bits(value, order) == static_cast<int>(word.size()), value, order);
      CHECK(bytes.size() == (word.size() + 7) / 8, value, order);
      CHECK(bits_of(bytes, static_cast<int>(word.size())) == word, value, order);
    }
  }
}

void check_round_trip(uint32_t value, int order) {
  const std::vector<uint8_t> bytes = golomb(value, order);
  CHECK(static_cast<int>(bytes.size()) == (golomb_bits(value, order) + 7) / 8, value, order);
  BitReader in(bytes.data(), bytes.size());
  uint32_t decoded = ~value;
  CHECK(get_golomb(&in, order, &decoded), value, order);
  CHECK(decoded == value, decoded, value, order);
  CHECK(in.exhausted() && !in.overrun(), value, order);
  for (size_t size = 0; size < bytes.size(); ++size) {  // every shorter buffer is refused
    BitReader cut(bytes.data(), size);
    CHECK(!get_golomb(&cut, order, &decoded) && cut.overrun(), value, order, size);
  }
}

void test_largest_values() {
  for (int order = 0; order <= 25; ++order) {  // the codec uses 0 to 7 + 18
    const uint32_t largest = ~0u - (1u << order);
    for (uint32_t value : {largest, largest - 1, largest - 2, 0x7fffffffu, 0x40000000u, 8u, 0u})
      check_round_trip(value, order);
    // One more has 32 bits after its leading one: writable, but no decoder accepts it.
    const std::vector<uint8_t> bytes = golomb(largest + 1, order);
    BitReader in(bytes.data(), bytes.size());
    uint32_t decoded;
    CHECK(!get_golomb(&in, order, &decoded) && !in.overrun(), order);
  }
}

void test_endless_zeros_are_refused() {
  const std::vector<uint8_t> zeros(64, 0);
  BitReader in(zeros.data(), zeros.size());
  uint32_t decoded;
  CHECK(!get_golomb(&in, 0, &decoded));
  CHECK(!in.overrun());  // refused by the 32nd zero, not by the end
}

void test_sequence() {
  std::vector<uint8_t> bytes;
  BitWriter out(&bytes);
  test::Random random(1);
  std::vector<uint32_t> values(3000);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint32_t>(random.bits() >> (33 + i % 31));
    const int order = static_cast<int>(i % 7);
    put_golomb(&out, values[i], order);
    out.put(values[i], static_cast<int>(i % 33));
  }
  out.finish();
  BitReader in(bytes.data(), bytes.size());
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t value = 0;
    CHECK(get_golomb(&in, static_cast<int>(i % 7), &value) && value == values[i], i, value);
    const int count = static_cast<int>(i % 33);
    const uint64_t mask = (uint64_t{1} << count) - 1;
    CHECK(in.get(count) == (values[i] & mask), i, count);
  }
  CHECK(in.exhausted() && !in.overrun());
}

void test_ends() {
  BitReader empty(nullptr, 0);
  CHECK(empty.exhausted() && empty.get(0) == 0 && !empty.overrun());
  CHECK(empty.get(1) == 0 && empty.overrun());

  const uint8_t byte = 0x85;  // 1 0 1 0 0 0 0 1
  BitReader in(&byte, 1);
  CHECK(!in.exhausted());
  CHECK(in.get(3) == 5);
  CHECK(!in.exhausted());  // the last bit is not padding: it is one
  CHECK(in.get(5) == 16 && in.exhausted() && !in.overrun());

  const uint8_t two[] = {0xff, 0x00};
  BitReader whole_byte_left(two, 2);
  CHECK(whole_byte_left.get(8) == 0xff);
  CHECK(!whole_byte_left.exhausted());  // 8 zero bits are a byte too many, not padding
  CHECK(whole_byte_left.get(1) == 0 && whole_byte_left.exhausted());

  const uint8_t four[] = {0x78, 0x56, 0x34, 0x92};
  BitReader word(four, 4);
  CHECK(word.get(32) == 0x92345678u && word.exhausted());
}

void test_writer() {
  std::vector<uint8_t> bytes;
  BitWriter out(&bytes);
  out.finish();
  CHECK(bytes.empty());
  out.put(0xdeadbeefu, 0);
  out.finish();
  CHECK(bytes.empty());
  out.put(0xffffffffu, 3);  // bits above the count are ignored
  out.put(0, 2);
  out.put(0x92345678u, 32);
  out.finish();
  CHECK((bytes == std::vector<uint8_t>{0x07, 0xcf, 0x8a, 0x46, 0x12}), bytes.size());
}

// Many bits at once are those bits one by one, from any place in a byte on and up to the end.
void test_many_at_once() {
  test::Random random(2);
  std::vector<uint8_t> data(41);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.bits());
  for (int lead = 0; lead < 9; ++lead) {
    for (int count = 0; count <= 8 * 41; ++count) {
      std::vector<uint8_t> bytes, expected;
      BitWriter out(&bytes), plain(&expected);
      const auto put_around = [&](BitWriter* writer, auto put_middle) {
        writer->put(0x155, lead);
        put_middle();
        writer->put(0x2d, 7);
        writer->finish();
      };
      put_around(&out, [&] { out.put_all(data.data(), count); });
      put_around(&plain, [&] {
        for (int i = 0; i < count; ++i)
          plain.put(static_cast<uint32_t>(data[static_cast<size_t>(i / 8)]) >> (i % 8), 1);
      });
      CHECK(bytes == expected, lead, count);

      BitReader in(bytes.data(), bytes.size());
      std::vector<uint8_t> back(42, 0xee);
      in.get(lead);
      in.get_all(count, back.data());
      CHECK(bits_of(back, count) == bits_of(data, count), lead, count);
      CHECK(back[static_cast<size_t>(count + 7) / 8] == 0xee, lead, count);
      CHECK(in.get(7) == 0x2d && in.exhausted() && !in.overrun(), lead, count);
      BitReader cut(bytes.data(), static_cast<size_t>(lead + count) / 8);
      cut.get(lead);
      cut.get_all(count, back.data());
      CHECK(cut.overrun() == ((lead + count) % 8 != 0), lead, count);
    }
  }
}

void test_zigzag() {
  const int32_t values[] = {0, -1, 1, -2, 2, -3, INT32_MAX, INT32_MIN};
  const uint32_t codes[] = {0, 1, 2, 3, 4, 5, 0xfffffffeu, 0xffffffffu};
  for (int i = 0; i < 8; ++i) {
    CHECK(zigzag(values[i]) == codes[i], values[i], zigzag(values[i]));
    CHECK(unzigzag(codes[i]) == values[i], codes[i], unzigzag(codes[i]));
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_literal_code_words();
  gct::test_largest_values();
  gct::test_endless_zeros_are_refused();
  gct::test_sequence();
  gct::test_ends();
  gct::test_writer();
  gct::test_many_at_once();
  gct::test_zigzag();
  return gct::test::result();
}
