// Run-time forms of the generated tables.
#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "core/class_code.h"
#include "cpu/kernels.h"
#include "cpu/trellis.h"

namespace gct {
namespace {

// One lazily built table per index, never freed; call_once makes the first use safe from several
// threads. It takes longer than a look-up should, once it is done, too: blocks ask for `ready_`.
template <typename T, int N>
class LazyTables {
 public:
  template <typename Build>
  const T& get(int index, Build build) {
    if (const T* ready = ready_[index].load(std::memory_order_acquire)) return *ready;
    std::call_once(once_[index], [&] {
      auto table = std::make_unique<T>();
      build(table.get());
      ready_[index].store(table.release(), std::memory_order_release);
    });
    return *ready_[index].load(std::memory_order_acquire);
  }

 private:
  std::once_flag once_[N];
  std::atomic<const T*> ready_[N] = {};
};

// A symbol with its frequency; a table's symbols stand in the order of the cumulative frequencies.
struct SymbolFreq {
  int symbol;
  uint32_t freq;
};

// The committed tables name a magnitude's frequency once for both signs; the escape comes last.
std::vector<SymbolFreq> symbol_freqs(int table, const uint16_t* f) {
  const int magnitudes = table_magnitudes(table);
  std::vector<SymbolFreq> result;
  for (int s = 0; s <= 2 * magnitudes; ++s) result.push_back({s, f[symbol_magnitude(s)]});
  result.push_back({kEscapeSymbol, f[magnitudes + 1]});
  return result;
}

std::vector<SymbolFreq> plain_freqs(int table) { return symbol_freqs(table, table_freqs(table)); }

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
    if (k < MagnitudeTable::kShort) {
      // Zero and the escape have one symbol each; the others a second one behind it.
      const bool two = k > 0 && k <= magnitudes;
      result->signed_bias[k] = result->bias[k];
      result->signed_bias[MagnitudeTable::kShort + k] =
          result->bias[k] + (two ? result->freq[k] : 0);
    }
    result->reciprocal[k] = e.reciprocal;
    result->shift[k] = e.packed >> 25;
    result->packed[k] = e.packed;
    result->cost_low[k] = static_cast<uint8_t>(by_symbol.cost[symbol] & 0xff);
    result->cost_high[k] = static_cast<uint8_t>(by_symbol.cost[symbol] >> 8);
  }
}

void fill_decode(const std::vector<SymbolFreq>& freqs, DecodeTable* table) {
  uint32_t slot = 0;
  for (const SymbolFreq& s : freqs) {
    for (uint32_t i = 0; i < s.freq; ++i)
      table->slot[slot++] = make_decode_entry(static_cast<uint32_t>(s.symbol), s.freq, i);
  }
}

void fill_levels(int table, int set, LevelTable* result) {
  for (int s = 0; s <= 2 * table_magnitudes(table); ++s) {
    const float value = level(table, symbol_magnitude(s), set);
    result->level[s] = symbol_negative(s) ? -value : value;
  }
}

void fill_trellis_levels(int table, int quantizer, LevelTable* levels) {
  for (int s = 0; s <= 2 * table_magnitudes(table); ++s) {
    const float value = trellis_level(table, quantizer, symbol_magnitude(s));
    levels->level[s] = symbol_negative(s) ? -value : value;
  }
}

// Magnitudes without a symbol cost so much that they are never chosen.
void fill_costs(int table, int quantizer, TrellisCosts* costs) {
  constexpr float kNever = 1e9f;
  const int magnitudes = table_magnitudes(table);
  const uint16_t* f = trellis_freqs(table, quantizer);
  const auto cost = [](uint32_t freq) {
    const double bits = kProbBits - std::log2(static_cast<double>(freq));
    return kTrellisLambda * static_cast<float>(std::lround(bits * 4096)) * (1.0f / 4096.0f);
  };
  for (int k = 0; k < kTrellisCandidates; ++k) {
    costs->level[k] = trellis_level(table, quantizer, k);
    costs->rate[k] = k <= magnitudes ? cost(f[k]) : kNever;
  }
  costs->escape_rate = cost(f[magnitudes + 1]);
  costs->top = static_cast<float>(magnitudes);
}

// Those of all t of a shape, of both quantizers: f(table among all, quantizer, where it goes).
template <typename T, typename F>
void fill_trellis(int shape, T* all, F f) {
  for (int i = 0; i < tables::kTablesPerShape; ++i) {
    for (int q = 0; q < kQuantizers; ++q)
      f(shape * tables::kTablesPerShape + i, q, &all->table[trellis_table(i, q)]);
  }
}

template <typename T>
struct TrellisTables {
  T table[kTrellisTablesPerShape];
};

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
               fill_encode(plain_freqs(first_table(shape) + i), &all->table[i]);
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
               fill_decode(plain_freqs(first_table(shape) + i), &all->table[i]);
           })
      .table;
}

const LevelTable* level_tables(int shape, int set) {
  static LazyTables<ShapeTables<LevelTable>, kLevelSets * tables::kNumShapes> cache;
  return cache
      .get(kLevelSets * shape + set,
           [shape, set](ShapeTables<LevelTable>* all) {
             for (int i = 0; i < tables::kTablesPerShape; ++i)
               fill_levels(first_table(shape) + i, set, &all->table[i]);
           })
      .table;
}

const EncodeTable* trellis_encode_tables(int shape) {
  static LazyTables<TrellisTables<EncodeTable>, tables::kNumShapes> cache;
  const auto build = [shape](TrellisTables<EncodeTable>* all) {
    fill_trellis(shape, all, [](int table, int q, EncodeTable* t) {
      fill_encode(symbol_freqs(table, trellis_freqs(table, q)), t);
    });
  };
  return cache.get(shape, build).table;
}

const DecodeTable* trellis_decode_tables(int shape) {
  static LazyTables<TrellisTables<DecodeTable>, tables::kNumShapes> cache;
  const auto build = [shape](TrellisTables<DecodeTable>* all) {
    fill_trellis(shape, all, [](int table, int q, DecodeTable* t) {
      fill_decode(symbol_freqs(table, trellis_freqs(table, q)), t);
    });
  };
  return cache.get(shape, build).table;
}

const LevelTable* trellis_level_tables(int shape) {
  static LazyTables<TrellisTables<LevelTable>, tables::kNumShapes> cache;
  const auto build = [shape](TrellisTables<LevelTable>* all) {
    fill_trellis(shape, all, fill_trellis_levels);
  };
  return cache.get(shape, build).table;
}

const TrellisCosts* trellis_cost_tables(int shape) {
  static LazyTables<TrellisTables<TrellisCosts>, tables::kNumShapes> cache;
  const auto build = [shape](TrellisTables<TrellisCosts>* all) {
    fill_trellis(shape, all, fill_costs);
  };
  return cache.get(shape, build).table;
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
