// Run-time forms of the generated tables.
#include <cmath>
#include <memory>
#include <mutex>

#include "cpu/kernels.h"

namespace gct {
namespace {

// One lazily built table per index; call_once makes the first use safe from several threads.
template <typename T, int N>
class LazyTables {
 public:
  template <typename Build>
  const T& get(int index, Build build) {
    std::call_once(once_[index], [&] {
      table_[index].reset(new T());
      build(table_[index].get());
    });
    return *table_[index];
  }

 private:
  std::once_flag once_[N];
  std::unique_ptr<T> table_[N];
};

// Frequencies by symbol: the committed ones name a magnitude's frequency once for both signs.
int symbol_freqs(int table, uint16_t* freqs) {
  const int magnitudes = table_magnitudes(table);
  const uint16_t* f = table_freqs(table);
  const int escape = escape_symbol(magnitudes);
  for (int s = 0; s < escape; ++s) freqs[s] = f[symbol_magnitude(s)];
  freqs[escape] = f[magnitudes + 1];
  return escape + 1;
}

constexpr int kClassSymbols = 2 * tables::kClassDeltaMax + 3;

const uint16_t* class_freqs(int model) { return tables::kClassFreqs + model * kClassSymbols; }

void fill_encode(const uint16_t* freqs, int count, EncodeTable* table) {
  uint32_t cum = 0;
  for (int s = 0; s < count; ++s) {
    table->entry[s] = make_encode_entry(freqs[s], cum);
    const double bits = kProbBits - std::log2(static_cast<double>(freqs[s]));
    table->cost[s] = static_cast<uint16_t>(std::lround(bits * 4096));
    cum += freqs[s];
  }
}

void fill_decode(const uint16_t* freqs, int count, DecodeTable* table) {
  uint32_t slot = 0;
  for (int s = 0; s < count; ++s) {
    for (uint32_t i = 0; i < freqs[s]; ++i)
      table->slot[slot++] = make_decode_entry(static_cast<uint32_t>(s), freqs[s], i);
  }
}

}  // namespace

const EncodeTable& encode_table(int table) {
  static LazyTables<EncodeTable, kNumTables> cache;
  return cache.get(table, [table](EncodeTable* t) {
    uint16_t freqs[kMaxSymbols];
    fill_encode(freqs, symbol_freqs(table, freqs), t);
  });
}

const DecodeTable& decode_table(int table) {
  static LazyTables<DecodeTable, kNumTables> cache;
  return cache.get(table, [table](DecodeTable* t) {
    uint16_t freqs[kMaxSymbols];
    fill_decode(freqs, symbol_freqs(table, freqs), t);
  });
}

const LevelTable& level_table(int table, bool stochastic) {
  static LazyTables<LevelTable, 2 * kNumTables> cache;
  return cache.get(2 * table + (stochastic ? 1 : 0), [table, stochastic](LevelTable* t) {
    const int escape = escape_symbol(table_magnitudes(table));
    for (int s = 0; s < escape; ++s) {
      const float value = level(table, symbol_magnitude(s), stochastic);
      t->level[s] = symbol_negative(s) ? -value : value;
    }
  });
}

const EncodeTable& class_encode_table(int model) {
  static LazyTables<EncodeTable, tables::kNumClassModels> cache;
  return cache.get(model,
                   [model](EncodeTable* t) { fill_encode(class_freqs(model), kClassSymbols, t); });
}

const DecodeTable& class_decode_table(int model) {
  static LazyTables<DecodeTable, tables::kNumClassModels> cache;
  return cache.get(model,
                   [model](DecodeTable* t) { fill_decode(class_freqs(model), kClassSymbols, t); });
}

}  // namespace gct
