// Run-time forms of the generated tables.
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "core/class_code.h"
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

// A symbol with its frequency; a table's symbols stand in the order of the cumulative frequencies.
struct SymbolFreq {
  int symbol;
  uint32_t freq;
};

// The committed tables name a magnitude's frequency once for both signs; the escape comes last.
std::vector<SymbolFreq> symbol_freqs(int table) {
  const int magnitudes = table_magnitudes(table);
  const uint16_t* f = table_freqs(table);
  std::vector<SymbolFreq> result;
  for (int s = 0; s <= 2 * magnitudes; ++s) result.push_back({s, f[symbol_magnitude(s)]});
  result.push_back({kEscapeSymbol, f[magnitudes + 1]});
  return result;
}

std::vector<SymbolFreq> class_freqs(int model) {
  std::vector<SymbolFreq> result;
  for (int s = 0; s < kClassSymbols; ++s)
    result.push_back({s, tables::kClassFreqs[model * kClassSymbols + s]});
  return result;
}

void fill_encode(const std::vector<SymbolFreq>& freqs, EncodeTable* table) {
  uint32_t cum = 0;
  for (const SymbolFreq& s : freqs) {
    table->entry[s.symbol] = make_encode_entry(s.freq, cum);
    const double bits = kProbBits - std::log2(static_cast<double>(s.freq));
    table->cost[s.symbol] = static_cast<uint16_t>(std::lround(bits * 4096));
    cum += s.freq;
  }
}

void fill_magnitudes(int table, MagnitudeTable* result) {
  const EncodeTable& by_symbol = encode_table(table);
  const int magnitudes = table_magnitudes(table);
  for (int k = 0; k <= magnitudes + 1; ++k) {
    const int symbol = k == 0 ? 0 : k <= magnitudes ? 2 * k - 1 : kEscapeSymbol;
    const EncodeEntry& e = by_symbol.entry[symbol];
    result->freq[k] = e.packed & 0xfffu;
    result->bias[k] = (e.packed >> 12) & 0x1fffu;
    result->reciprocal[k] = e.reciprocal;
    result->shift[k] = e.packed >> 25;
  }
}

void fill_decode(const std::vector<SymbolFreq>& freqs, DecodeTable* table) {
  uint32_t slot = 0;
  for (const SymbolFreq& s : freqs) {
    for (uint32_t i = 0; i < s.freq; ++i)
      table->slot[slot++] = make_decode_entry(static_cast<uint32_t>(s.symbol), s.freq, i);
  }
}

void fill_levels(int table, bool stochastic, LevelTable* levels) {
  for (int s = 0; s <= 2 * table_magnitudes(table); ++s) {
    const float value = level(table, symbol_magnitude(s), stochastic);
    levels->level[s] = symbol_negative(s) ? -value : value;
  }
}

template <typename T>
struct ShapeTables {
  T table[tables::kTablesPerShape];
};

int first_table(int shape) { return shape * tables::kTablesPerShape; }

}  // namespace

const EncodeTable* encode_tables(int shape) {
  static LazyTables<ShapeTables<EncodeTable>, tables::kNumShapes> cache;
  return cache
      .get(shape,
           [shape](ShapeTables<EncodeTable>* all) {
             for (int i = 0; i < tables::kTablesPerShape; ++i)
               fill_encode(symbol_freqs(first_table(shape) + i), &all->table[i]);
           })
      .table;
}

const MagnitudeTable* magnitude_tables(int shape) {
  static LazyTables<ShapeTables<MagnitudeTable>, tables::kNumShapes> cache;
  return cache
      .get(shape,
           [shape](ShapeTables<MagnitudeTable>* all) {
             for (int i = 0; i < tables::kTablesPerShape; ++i)
               fill_magnitudes(first_table(shape) + i, &all->table[i]);
           })
      .table;
}

const DecodeTable* decode_tables(int shape) {
  static LazyTables<ShapeTables<DecodeTable>, tables::kNumShapes> cache;
  return cache
      .get(shape,
           [shape](ShapeTables<DecodeTable>* all) {
             for (int i = 0; i < tables::kTablesPerShape; ++i)
               fill_decode(symbol_freqs(first_table(shape) + i), &all->table[i]);
           })
      .table;
}

const LevelTable* level_tables(int shape, bool stochastic) {
  static LazyTables<ShapeTables<LevelTable>, 2 * tables::kNumShapes> cache;
  return cache
      .get(2 * shape + (stochastic ? 1 : 0),
           [shape, stochastic](ShapeTables<LevelTable>* all) {
             for (int i = 0; i < tables::kTablesPerShape; ++i)
               fill_levels(first_table(shape) + i, stochastic, &all->table[i]);
           })
      .table;
}

const EncodeTable& class_encode_table(int model) {
  static LazyTables<EncodeTable, tables::kNumClassModels> cache;
  return cache.get(model, [model](EncodeTable* t) { fill_encode(class_freqs(model), t); });
}

const DecodeTable& class_decode_table(int model) {
  static LazyTables<DecodeTable, tables::kNumClassModels> cache;
  return cache.get(model, [model](DecodeTable* t) { fill_decode(class_freqs(model), t); });
}

}  // namespace gct
