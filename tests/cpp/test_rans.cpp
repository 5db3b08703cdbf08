// rANS as arithmetic: exact division, the coder's step against its definition, round trips on every
// table and every implementation, words in the order that the wire format promises.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.h"
#include "core/rans.h"
#include "cpu/kernels.h"

namespace gct {
namespace {

using test::Random;

// The definition (Duda 2013), with a real division.
uint32_t put_ref(uint32_t x, uint32_t freq, uint32_t cum) {
  return (x / freq) * kProbTotal + cum + x % freq;
}

uint32_t put(uint32_t x, uint32_t freq, uint32_t cum, uint16_t** words) {
  rans_put(&x, make_encode_entry(freq, cum), words);
  return x;
}

void check_put(uint32_t x, uint32_t freq, uint32_t cum) {
  uint16_t buffer[1];
  uint16_t* words = buffer + 1;
  const uint32_t actual = put(x, freq, cum, &words);
  CHECK(actual == put_ref(x, freq, cum), x, freq, cum, actual);
  CHECK(words == buffer + 1, x, freq, cum);  // these states need no renormalization
}

// The rounded-up reciprocal overestimates a quotient by an amount that grows with x, so the state
// just below the last multiple of freq is the worst one; the others guard the formula's edges.
void test_division() {
  Random random(1);
  for (uint32_t freq = 1; freq < kProbTotal; ++freq) {
    const uint32_t end = freq << 19;  // states from here on are renormalized first
    const uint32_t first = std::max(kRansLow, freq);
    std::vector<uint32_t> states = {end - 1, end - freq, first, first + 1, kRansLow};
    for (int shift = 4; shift < 19; ++shift) {
      states.push_back((freq << shift) - 1);
      states.push_back(freq << shift);
    }
    for (int i = 0; i < 40; ++i) {
      const uint32_t multiple = freq * static_cast<uint32_t>(random.below(1 << 19));
      states.push_back(multiple + freq - 1);
      states.push_back(multiple);
    }
    for (uint32_t x : states) {
      if (x < kRansLow || x >= end) continue;
      check_put(x, freq, 0);
      check_put(x, freq, kProbTotal - freq);
      check_put(x, freq, (kProbTotal - freq) / 2);
    }
  }
}

// Computed by hand from x -> (x / f) 4096 + cum + x mod f; a state of at least f 2^19 first gives
// away its low 16 bits.
void test_literal_sequence() {
  uint16_t buffer[4];
  uint16_t* words = buffer + 4;
  uint32_t x = kRansLow;
  x = put(x, 2048, 0, &words);  // 32768 / 2048 = 16 rest 0
  CHECK(x == 0x10000u, x);
  x = put(x, 1024, 2048, &words);  // 65536 / 1024 = 64 rest 0
  CHECK(x == 0x40800u, x);
  x = put(x, 3, 7, &words);  // 264192 / 3 = 88064 rest 0
  CHECK(x == 0x15800007u, x);
  CHECK(words == buffer + 4);
  x = put(x, 5, 100, &words);  // over 5 2^19: word 7; 0x1580 / 5 = 1100 rest 4
  CHECK(words == buffer + 3 && buffer[3] == 7, buffer[3]);
  CHECK(x == 1100 * 4096 + 100 + 4, x);
  x = put(x, 1, 4095, &words);  // 4505704 = 0x44c068, over 2^19: word 0xc068
  CHECK(words == buffer + 2 && buffer[2] == 0xc068, buffer[2]);
  CHECK(x == 0x44 * 4096 + 4095, x);  // a state under 2^15 before the symbol, over it after

  // And back, by the decoder's step.
  x = rans_advance(x, make_decode_entry(9, 1, 0));
  CHECK(x == 0x44u, x);
  x = (x << 16) | buffer[2];
  x = rans_advance(x, make_decode_entry(9, 5, (x & 4095) - 100));
  CHECK(x == 0x1580u, x);
  x = (x << 16) | buffer[3];
  x = rans_advance(x, make_decode_entry(9, 3, (x & 4095) - 7));
  CHECK(x == 0x40800u, x);
}

// Frequencies of a table by symbol, both signs written out, from the generated numbers alone.
std::vector<uint32_t> freqs_of(int table) {
  const int magnitudes = table_magnitudes(table);
  const uint16_t* f = table_freqs(table);
  std::vector<uint32_t> freqs = {f[0]};
  for (int k = 1; k <= magnitudes; ++k) freqs.insert(freqs.end(), {f[k], f[k]});
  freqs.resize(kEscapeSymbol);  // numbers that the table doesn't use
  freqs.push_back(f[magnitudes + 1]);
  return freqs;
}

std::vector<uint32_t> class_freqs_of(int model) {
  constexpr int kSymbols = 2 * tables::kClassDeltaMax + 3;
  const uint16_t* f = tables::kClassFreqs + model * kSymbols;
  return {f, f + kSymbols};
}

// Half the symbols by their probability, half evenly: rare ones must occur too.
std::vector<uint8_t> draw_symbols(const std::vector<uint32_t>& freqs, size_t count,
                                  Random* random) {
  std::vector<uint8_t> symbols(count);
  for (uint8_t& s : symbols) {
    if (random->below(2) == 0) {
      do s = static_cast<uint8_t>(random->below(freqs.size()));
      while (freqs[s] == 0);
      continue;
    }
    uint64_t slot = random->below(kProbTotal);
    for (s = 0; slot >= freqs[s]; ++s) slot -= freqs[s];
  }
  return symbols;
}

// Decoder written from docs/wire-format.md: one symbol at a time, words in order.
bool decodes_by_the_book(std::vector<uint32_t> lanes, const std::vector<uint32_t>& freqs,
                         const std::vector<uint8_t>& symbols, const std::vector<uint16_t>& words) {
  size_t next = 0;
  for (size_t i = 0; i < symbols.size(); ++i) {
    uint32_t& x = lanes[i % kLanes];
    uint32_t r = x % 4096, s = 0;
    for (; r >= freqs[s]; ++s) r -= freqs[s];
    if (s != symbols[i]) return false;
    x = freqs[s] * (x / 4096) + r;
    if (x >= 1u << 15) continue;
    if (next == words.size()) return false;
    x = x * 65536 + words[next++];
  }
  return next == words.size() &&
         std::all_of(lanes.begin(), lanes.end(), [](uint32_t x) { return x == 1u << 15; });
}

struct Encoded {
  std::vector<uint32_t> lanes;
  std::vector<uint16_t> words;
  bool operator==(const Encoded& o) const { return lanes == o.lanes && words == o.words; }
};

Encoded encode_all(const Kernels& k, const EncodeTable* table, const uint8_t* choice,
                   const std::vector<uint8_t>& symbols) {
  // A symbol gives at most one word, and below the first one kernels may write.
  Encoded e = {std::vector<uint32_t>(kLanes, kRansLow),
               std::vector<uint16_t>(1 + kLanes + symbols.size())};
  e.words[0] = 0xabcd;  // guard
  uint16_t* end = e.words.data() + e.words.size();
  const uint16_t* begin = k.encode(e.lanes.data(), symbols.data(), static_cast<int>(symbols.size()),
                                   table, choice, end);
  CHECK(e.words[0] == 0xabcd && begin > e.words.data() + kLanes, symbols.size());
  e.words.erase(e.words.begin(), e.words.begin() + (begin - e.words.data()));
  return e;
}

void check_decode(const Kernels& k, const DecodeTable* table, const uint8_t* choice,
                  const std::vector<uint8_t>& symbols, Encoded e) {
  const size_t n = symbols.size();
  std::vector<uint8_t> wire(2 * (n + kLanes), 0);  // what a step may read
  for (size_t i = 0; i < e.words.size(); ++i) store_le<uint16_t>(&wire[2 * i], e.words[i]);
  std::vector<uint8_t> decoded(n + 1, 0xee);
  CHECK(k.decode(e.lanes.data(), table, choice, static_cast<int>(n), wire.data(), decoded.data()) ==
            wire.data() + 2 * e.words.size(),
        n);
  CHECK(decoded.back() == 0xee);
  decoded.pop_back();
  CHECK(decoded == symbols, symbols.size());
  CHECK(e.lanes == std::vector<uint32_t>(kLanes, kRansLow));
}

const DecodeTable& one_decode_table(int table) {
  return decode_tables(table / tables::kTablesPerShape)[table % tables::kTablesPerShape];
}

void check_round_trip(const std::vector<uint32_t>& freqs, const EncodeTable& encode_table,
                      const DecodeTable& decode_table, const std::vector<uint8_t>& symbols) {
  int count;
  const Kernels* const* all = usable_kernels(&count);
  const Encoded reference = encode_all(*scalar_kernels(), &encode_table, nullptr, symbols);
  CHECK(decodes_by_the_book(reference.lanes, freqs, symbols, reference.words), symbols.size());
  for (int i = 0; i < count; ++i) {
    CHECK(encode_all(*all[i], &encode_table, nullptr, symbols) == reference, i, symbols.size());
    check_decode(*all[i], &decode_table, nullptr, symbols, reference);
  }
}

void test_round_trips() {
  Random random(2);
  const size_t lengths[] = {1, 15, 16, 17, 31, 32, 33, 64, 255, 256};
  size_t next = 0;
  for (int table = 0; table < kNumTables; ++table) {
    const std::vector<uint32_t> freqs = freqs_of(table);
    for (size_t n : {lengths[next % 10], size_t{256}}) {
      check_round_trip(freqs, encode_table(table), one_decode_table(table),
                       draw_symbols(freqs, n, &random));
    }
    ++next;
  }
  for (int model = 0; model < tables::kNumClassModels; ++model) {
    const std::vector<uint32_t> freqs = class_freqs_of(model);
    check_round_trip(freqs, class_encode_table(model), class_decode_table(model),
                     draw_symbols(freqs, 256, &random));
  }
}

// Every element with a table of its own. A choice of one table for all is that table.
void test_mixed_tables() {
  Random random(4);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int shape = 0; shape < tables::kNumShapes; ++shape) {
    for (size_t n : {1, 16, 31, 32, 33, 100, 256}) {
      std::vector<uint8_t> choice(n), symbols(n);
      for (size_t i = 0; i < n; ++i) {
        choice[i] = static_cast<uint8_t>(random.below(tables::kTablesPerShape));
        const int table = shape * tables::kTablesPerShape + choice[i];
        symbols[i] = draw_symbols(freqs_of(table), 1, &random)[0];
      }
      const EncodeTable* encode = encode_tables(shape);
      const Encoded reference = encode_all(*scalar_kernels(), encode, choice.data(), symbols);
      for (int i = 0; i < count; ++i) {
        CHECK(encode_all(*all[i], encode, choice.data(), symbols) == reference, i, n, shape);
        check_decode(*all[i], decode_tables(shape), choice.data(), symbols, reference);
      }
      const std::vector<uint8_t> same(n, choice[0]), zeros(n, 0);
      CHECK(encode_all(*scalar_kernels(), encode, same.data(), zeros) ==
                encode_all(*scalar_kernels(), encode + choice[0], nullptr, zeros),
            n, shape);
    }
  }
}

bool escape_bit(const uint32_t* escapes, size_t i) {
  return (escapes[i / kLanes] >> (i % kLanes) & 1) != 0;
}

struct ValueBlock {
  std::vector<float> x;
  std::vector<uint8_t> symbols;
  Encoded encoded;
};

// Values through encode_values(): the words of quantize() and encode(), and escapes where these
// have them.
void check_encode_values(const Kernels& k, int table, const Quantizer& q, const ValueBlock& block) {
  const int n = static_cast<int>(block.x.size());
  Encoded e = {std::vector<uint32_t>(kLanes, kRansLow),
               std::vector<uint16_t>(1 + kLanes + block.x.size())};
  e.words[0] = 0xabcd;
  uint32_t escapes[kBlock / kLanes + 1];
  std::fill(std::begin(escapes), std::end(escapes), 0xeeeeeeeeu);
  const uint16_t* begin =
      k.encode_values(e.lanes.data(), block.x.data(), n, q, magnitude_table(table),
                      e.words.data() + e.words.size(), escapes);
  CHECK(e.words[0] == 0xabcd && begin > e.words.data() + kLanes, n);
  e.words.erase(e.words.begin(), e.words.begin() + (begin - e.words.data()));
  CHECK(e == block.encoded, table, n);
  CHECK(escapes[div_up(n, kLanes)] == 0xeeeeeeeeu, n);
  for (size_t i = 0; i < block.x.size(); ++i)
    CHECK(escape_bit(escapes, i) == (block.symbols[i] == kEscapeSymbol), table, n, i);
}

// Code lengths of symbols of the widest alphabet, against the table's own symbols and their costs.
void check_cost(const Kernels& k, int table, const Quantizer& q, const ValueBlock& block) {
  const int n = static_cast<int>(block.x.size());
  Quantizer widest = q;
  widest.magnitudes = tables::kMaxMagnitude;
  std::vector<uint8_t> symbols(block.x.size());  // so that sanitizers see what is read behind it
  scalar_kernels()->quantize(block.x.data(), n, widest, symbols.data());
  uint32_t escapes[kBlock / kLanes + 1], expected = 0, any_escape = 0;
  std::fill(std::begin(escapes), std::end(escapes), 0xeeeeeeeeu);
  const SymbolCost cost =
      k.cost(symbols.data(), n, magnitude_table(table), table_magnitudes(table), escapes);
  for (size_t i = 0; i < block.x.size(); ++i) {
    expected += encode_table(table).cost[block.symbols[i]];
    CHECK(escape_bit(escapes, i) == (block.symbols[i] == kEscapeSymbol), table, n, i);
  }
  for (int row = 0; row * kLanes < n; ++row) any_escape |= escapes[row];
  CHECK(cost.sum == expected, table, n, cost.sum, expected);
  CHECK(cost.any_escape == any_escape, table, n);
  CHECK(escapes[div_up(n, kLanes)] == 0xeeeeeeeeu, n);
}

struct Decoded {
  std::vector<uint32_t> lanes;
  std::vector<uint8_t> wire;
  std::vector<float> out;
  uint32_t escapes[kBlock / kLanes];
};

BlockDecode start_decode(int table, const ValueBlock& block, Decoded* d) {
  const size_t n = block.x.size();
  d->lanes = block.encoded.lanes;
  d->wire.assign(2 * (n + kLanes), 0);
  for (size_t i = 0; i < block.encoded.words.size(); ++i)
    store_le<uint16_t>(&d->wire[2 * i], block.encoded.words[i]);
  d->out.assign(n + 1, 5.0f);
  std::fill(std::begin(d->escapes), std::end(d->escapes), 0xeeeeeeeeu);
  const int shape = table / tables::kTablesPerShape, at = table % tables::kTablesPerShape;
  BlockDecode result;
  result.states = d->lanes.data();
  result.words = d->wire.data();
  result.table = decode_tables(shape) + at;
  result.levels = level_tables(shape, kCentroidLevels) + at;
  result.magnitudes = table_magnitudes(table);
  result.step = 0.37f;
  result.n = static_cast<int>(n);
  result.out = d->out.data();
  result.escapes = d->escapes;
  return result;
}

void check_values(int table, const ValueBlock& block, bool accumulate, const Decoded& d,
                  const BlockDecode& done) {
  const uint8_t* words = done.words;
  CHECK(words == d.wire.data() + 2 * block.encoded.words.size(), table);
  CHECK(d.lanes == std::vector<uint32_t>(kLanes, kRansLow), table);
  CHECK(d.out.back() == 5.0f, table);
  uint32_t any_escape = 0;
  for (size_t row = 0; row * kLanes < block.x.size(); ++row) any_escape |= d.escapes[row];
  CHECK(done.any_escape == any_escape, table);
  for (size_t i = 0; i < block.x.size(); ++i) {
    const bool escape = block.symbols[i] == kEscapeSymbol;
    const int k = escape ? 0 : symbol_magnitude(block.symbols[i]);
    const float magnitude = 0.37f * level(table, k, kCentroidLevels);
    const float value = symbol_negative(block.symbols[i]) ? -magnitude : magnitude;
    CHECK(escape_bit(d.escapes, i) == escape, table, i);
    CHECK(float_bits(d.out[i]) == float_bits(accumulate ? 5.0f + value : value), table, i);
  }
}

// Kinds of rows, which kernels may tell apart: from zero to the escape, or magnitudes under 8 and
// one of exactly 7, exactly 8 or beyond all alphabets.
constexpr size_t kRowKinds = 4;

void draw_row(size_t kind, const Quantizer& q, float* x, size_t n, Random* random) {
  const auto sign = [&](float value) { return random->below(2) == 0 ? value : -value; };
  for (size_t i = 0; i < n; ++i) {
    x[i] = static_cast<float>(random->unit() * (kind == 0 ? q.magnitudes + 2.5 : 7.6));
    if (random->below(2) == 0) x[i] = static_cast<float>(random->unit());
    if (random->below(20) == 0) x[i] = random->below(2) == 0 || kind > 0 ? 0.0f : 1e30f;
    x[i] = sign(x[i]);
  }
  constexpr float kOne[kRowKinds] = {0.0f, 7.0f, 8.0f, 1e30f};
  x[random->below(n)] = sign(kOne[kind]);
}

ValueBlock draw_block(int table, const Quantizer& q, size_t n, Random* random) {
  ValueBlock block = {std::vector<float>(n), std::vector<uint8_t>(n), {}};
  const size_t kind = random->below(kRowKinds);
  for (size_t i = 0; i < n; i += kLanes)
    draw_row((kind + i / kLanes) % kRowKinds, q, &block.x[i], std::min<size_t>(kLanes, n - i),
             random);
  scalar_kernels()->quantize(block.x.data(), static_cast<int>(n), q, block.symbols.data());
  block.encoded = encode_all(*scalar_kernels(), &encode_table(table), nullptr, block.symbols);
  return block;
}

// What the values decode to, apart and in their own place, as the levels say.
void check_restore(const Kernels& k, int table, int set, const Quantizer& q,
                   const ValueBlock& block) {
  const size_t n = block.x.size();
  const int shape = table / tables::kTablesPerShape, at = table % tables::kTablesPerShape;
  const LevelTable& levels = level_tables(shape, set)[at];
  for (bool in_place : {false, true}) {
    std::vector<float> x = block.x, apart(n + 1, 5.0f);
    x.push_back(5.0f);
    float* out = in_place ? x.data() : apart.data();
    uint32_t escapes[kBlock / kLanes + 1];
    std::fill(std::begin(escapes), std::end(escapes), 0xeeeeeeeeu);
    k.restore(x.data(), static_cast<int>(n), q, levels, 0.37f, out, escapes);
    CHECK(out[n] == 5.0f, table, n);
    CHECK(escapes[div_up(static_cast<int>(n), kLanes)] == 0xeeeeeeeeu, n);
    for (size_t i = 0; i < n; ++i) {
      const bool escape = block.symbols[i] == kEscapeSymbol;
      const int magnitude = escape ? 0 : symbol_magnitude(block.symbols[i]);
      const float value = 0.37f * level(table, magnitude, set);
      const float signed_value = magnitude > 0 && std::signbit(block.x[i]) ? -value : value;
      CHECK(escape_bit(escapes, i) == escape, table, n, i);
      CHECK(float_bits(out[i]) == float_bits(escape ? block.x[i] : signed_value), table, n, i);
    }
  }
}

// The kernels that go from values to words and back, alone and two blocks at once, against the
// ones that go by symbols.
void test_values() {
  Random random(5);
  int count;
  const Kernels* const* all = usable_kernels(&count);
  for (int table = 0; table < kNumTables; ++table) {
    Quantizer q;
    q.inverse_step = 1.0f;
    q.bias = 0.375f;
    q.magnitudes = table_magnitudes(table);
    const int other = (7 * table + 3) % kNumTables;  // of the pair
    Quantizer other_q = q;
    other_q.magnitudes = table_magnitudes(other);
    const ValueBlock pair[2] = {draw_block(table, q, kBlock, &random),
                                draw_block(other, other_q, kBlock, &random)};
    for (size_t n : {size_t{kBlock}, size_t{1} + random.below(kBlock)}) {
      const ValueBlock block = n == kBlock ? pair[0] : draw_block(table, q, n, &random);
      for (int i = 0; i < count; ++i) {
        check_encode_values(*all[i], table, q, block);
        check_cost(*all[i], table, q, block);
        check_restore(*all[i], table, kCentroidLevels, q, block);
        check_restore(*all[i], table, kLevelSets - 1, q, block);
        for (bool accumulate : {false, true}) {
          Decoded d, e;
          BlockDecode one = start_decode(table, block, &d);
          all[i]->decode_values(&one, accumulate);
          check_values(table, block, accumulate, d, one);
          BlockDecode two[2] = {start_decode(table, pair[0], &d), start_decode(other, pair[1], &e)};
          all[i]->decode_pair(two, accumulate);
          check_values(table, pair[0], accumulate, d, two[0]);
          check_values(other, pair[1], accumulate, e, two[1]);
        }
      }
    }
  }
}

// The decoder's refusal must depend on the words alone: broken lanes are some state, never a crash.
void test_wrong_lane_is_noticed() {
  Random random(3);
  const std::vector<uint32_t> freqs = freqs_of(100);
  const std::vector<uint8_t> symbols = draw_symbols(freqs, 256, &random);
  Encoded e = encode_all(*scalar_kernels(), &encode_table(100), nullptr, symbols);
  std::swap(e.lanes[3], e.lanes[4]);
  CHECK(!decodes_by_the_book(e.lanes, freqs, symbols, e.words));
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_division();
  gct::test_literal_sequence();
  gct::test_round_trips();
  gct::test_mixed_tables();
  gct::test_values();
  gct::test_wrong_lane_is_noticed();
  return gct::test::result();
}
