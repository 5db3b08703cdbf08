// The kernels once for all vector instruction sets, in terms of a `Simd` (simd_*.h) of kWidth
// lanes: kLanes / kWidth vectors hold the interleaved states; and of `Bytes` (bytes_*.h), rows of
// symbols. A source file for each set includes these and this, and is alone compiled for these
// instructions: everything here is in an anonymous namespace, so that no other file can end up with
// code from it.
//
// Rows of kLanes elements are vectorized; what is left of a block goes through the scalar
// reference.
#pragma once

#include <cstddef>

#include "cpu/codes.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"

namespace gct {
namespace {

using Float = Simd::Float;
using Int = Simd::Int;
using Mask = Simd::Mask;

constexpr int kWidth = Simd::kWidth;
constexpr int kVectors = Simd::kVectors;
static_assert(kVectors * kWidth == kLanes, "whole vectors hold the lanes");
static_assert(sizeof(Bytes::Row) == kLanes, "a row of bytes is a row of lanes");

// Lanes to one sum, pairwise and halving as the reference does. No copy of all lanes: compilers
// make it by halves, and reading a whole vector then waits for both.
template <int kCount>
float sum_lanes(const Float* lanes) {
  if constexpr (kCount == 1) {
    return Simd::sum(lanes[0]);
  } else {
    constexpr int kHalf = kCount / 2;
    Float sums[kHalf];
    for (int v = 0; v < kHalf; ++v) sums[v] = Simd::add(lanes[v], lanes[v + kHalf]);
    return sum_lanes<kHalf>(sums);
  }
}

Float widen_float16(Int half) {
  const Int magnitude = Simd::both(half, Simd::set(0x7fffu));
  const Float subnormal = Simd::multiply(Simd::to_float(magnitude), Simd::set(1.0f / 16777216.0f));
  // The exponent counts from -127 instead of -15; that of infinities and NaNs is 255.
  const Int shift = Simd::set((127u - 15u) << 23);
  Int normal = Simd::add(Simd::shift_left<13>(magnitude), shift);
  normal = Simd::add_where(Simd::less(Simd::set(0x7bffu), magnitude), normal, shift);
  const Float value =
      Simd::select(Simd::less(magnitude, Simd::set(0x400u)), subnormal, Simd::as_float(normal));
  const Int sign = Simd::shift_left<16>(Simd::both(half, Simd::set(0x8000u)));
  return Simd::as_float(Simd::add(Simd::as_int(value), sign));
}

// Asks for the row of kLanes elements that is so far from this one, well before a processor would
// by itself: slices are larger than the caches near it. Past an end, and beside floats that were
// converted from halves and lie in the nearest cache, it asks for nothing that counts.
constexpr int kBytesAhead = 4096;

template <typename T>
void ask_for(const T* row, int bytes) {
  constexpr size_t kLineBytes = 64;
  const auto at = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(bytes);
  for (size_t line = 0; line < kLanes * sizeof(T); line += kLineBytes)
    __builtin_prefetch(reinterpret_cast<const void*>(at + line));
}

template <typename F>
void widen_vectors(const uint16_t* halves, int64_t n, float* out, F f) {
  for (int64_t i = 0; i < n; i += kLanes) {
    ask_for(halves + i, kBytesAhead);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kWidth;
      Simd::store(out + at, f(Simd::load_words(halves + at)));
    }
  }
}

void widen(const uint16_t* halves, int64_t n, bool bfloat16, float* out) {
  const int64_t full = n / kLanes * kLanes;
  if (bfloat16) {
    widen_vectors(halves, full, out,
                  [](Int half) { return Simd::as_float(Simd::shift_left<16>(half)); });
  } else {
    widen_vectors(halves, full, out, widen_float16);
  }
  if (full < n) scalar_kernels()->widen(halves + full, n - full, bfloat16, out + full);
}

// Plus half a unit of the last place that is kept, less a bit where that place is even.
template <int kDropped>
Int round_half_even(Int x) {
  const Int odd = Simd::both(Simd::shift_right<kDropped>(x), Simd::set(1u));
  return Simd::add(Simd::add(x, Simd::set((1u << (kDropped - 1)) - 1)), odd);
}

Int narrow_bfloat16(Float x) {
  const Mask nan = Simd::less(Simd::set(0x7f800000u), Simd::as_int(Simd::abs(x)));
  const Int rounded = Simd::shift_right<16>(round_half_even<16>(Simd::as_int(x)));
  return Simd::select(nan, Simd::set(0x7fc0u), rounded);
}

Int narrow_float16(Float x) {
  const Int magnitude = Simd::as_int(Simd::abs(x));
  const Int sign = Simd::both(Simd::shift_right<16>(Simd::as_int(x)), Simd::set(0x8000u));
  const Int origin = Simd::set((127u - 15u) << 23);
  const Int normal = Simd::shift_right<13>(Simd::subtract(round_half_even<13>(magnitude), origin));
  const Int subnormal = Simd::subtract(Simd::as_int(Simd::add(Simd::abs(x), Simd::set(0.5f))),
                                       Simd::set(0x3f000000u));
  Int result = Simd::select(Simd::less(magnitude, Simd::set(0x38800000u)), subnormal, normal);
  result = Simd::select(Simd::less(Simd::set(0x477fefffu), magnitude), Simd::set(0x7c00u), result);
  result = Simd::select(Simd::less(Simd::set(0x7f800000u), magnitude), Simd::set(0x7e00u), result);
  return Simd::add(result, sign);
}

template <typename F>
void narrow_vectors(const float* x, int64_t n, uint16_t* out, F f) {
  for (int64_t i = 0; i < n; i += kWidth) Simd::store_words(out + i, f(Simd::load(x + i)));
}

void narrow(const float* x, int64_t n, bool bfloat16, uint16_t* out) {
  const int64_t full = n / kWidth * kWidth;
  if (bfloat16) {
    narrow_vectors(x, full, out, narrow_bfloat16);
  } else {
    narrow_vectors(x, full, out, narrow_float16);
  }
  if (full < n) scalar_kernels()->narrow(x + full, n - full, bfloat16, out + full);
}

BlockMoments moments(const float* x, int n) {
  if (n % kLanes != 0) return scalar_kernels()->moments(x, n);
  Float abs[kVectors], square[kVectors];
  for (int v = 0; v < kVectors; ++v) abs[v] = square[v] = Simd::set(0.0f);
  for (int i = 0; i < n; i += kLanes) {
    ask_for(x + i, kBytesAhead);
    for (int v = 0; v < kVectors; ++v) {
      const Float magnitude = Simd::abs(Simd::load(x + i + v * kWidth));
      abs[v] = Simd::add(abs[v], magnitude);
      square[v] = Simd::add(square[v], Simd::multiply(magnitude, magnitude));
    }
  }
  return {sum_lanes<kVectors>(abs), sum_lanes<kVectors>(square)};
}

// Magnitudes of kWidth values, up to `past`, which stands for all that the alphabet doesn't hold.
Int quantize_vector(Float x, Float inverse_step, Float bias, Float past) {
  const Float scaled = Simd::add(Simd::multiply(Simd::abs(x), inverse_step), bias);
  return Simd::truncate(Simd::min(scaled, past));
}

// The same where past is small enough for past + bias to be a float below past + 1; 0 <= bias < 1:
// a half less the deadzone, which is below a half.
Int quantize_short(Float x, Float inverse_step, Float bias, Float past) {
  const Float scaled = Simd::min_magnitude(Simd::multiply(x, inverse_step), past);
  return Simd::truncate(Simd::add(scaled, bias));
}

struct RowQuantizer {
  explicit RowQuantizer(const Quantizer& q)
      : inverse(Simd::set(q.inverse_step)),
        bias(Simd::set(q.bias)),
        past(Simd::set(static_cast<uint32_t>(q.magnitudes) + 1)),
        past_float(Simd::to_float(past)) {}

  // A row's magnitudes. True where all are below Simd::kLeastTable and looking them up among so few
  // saves time; longer tables' escapes are not below it.
  bool magnitudes(const float* x, Int* k) const {
    Int any = Simd::set(0u);
    for (int v = 0; v < kVectors; ++v) {
      k[v] = quantize_short(Simd::load(x + v * kWidth), inverse, bias, past_float);
      any = Simd::either(any, k[v]);
    }
    return Simd::kShortRows && Simd::no_bits(any, ~(Simd::kLeastTable - 1u));
  }

  Float inverse, bias;
  Int past;  // stands for all that the alphabet doesn't hold
  Float past_float;
};

// The quantizer of a block's elements from number `first` on.
Quantizer after(int first, const Quantizer& q) {
  Quantizer rest = q;
  rest.position += static_cast<uint64_t>(first);
  if (q.tables != nullptr) rest.tables += first;
  return rest;
}

// A row's symbols: 2 k - 1 for positive values, 2 k for negative ones, 0 for k = 0, and the escape
// for k = past. True if that is one of them.
bool put_symbols(Bytes::Row k, Bytes::Row past, const float* x, uint8_t* symbols) {
  const Bytes::Row positive = Bytes::without(Bytes::set(1), Simd::negative_bytes(x));
  const Bytes::Row symbol = Bytes::subtract_to_zero(Bytes::add(k, k), positive);
  const Bytes::Row over = Bytes::equal(k, past);
  Bytes::store(symbols, Bytes::select(over, Bytes::set(kEscapeSymbol), symbol));
  return Bytes::bits(over) != 0;
}

bool quantize_rows(const float* x, int n, const Quantizer& q, uint8_t* symbols) {
  const RowQuantizer quantizer(q);
  const Bytes::Row past = Bytes::set(q.magnitudes + 1);
  bool escaped = false;
  for (int i = 0; i < n; i += kLanes) {
    Int k[kVectors];
    quantizer.magnitudes(x + i, k);
    escaped |= put_symbols(Simd::to_bytes(k), past, x + i, symbols + i);
  }
  return escaped;
}

// The same where each element has a table of its own.
bool quantize_rows_by_tables(const float* x, int n, const Quantizer& q, uint8_t* symbols) {
  const Float inverse = Simd::set(q.inverse_step);
  const uint32_t* limits = reinterpret_cast<const uint32_t*>(q.limits);
  bool escaped = false;
  for (int i = 0; i < n; i += kLanes) {
    Int k[kVectors], past[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const int at = i + v * kWidth;
      const Int table = Simd::load_bytes(q.tables + at);
      past[v] = Simd::add(Simd::gather(limits, table), Simd::set(1u));
      k[v] = quantize_vector(Simd::load(x + at), inverse, Simd::gather(q.biases, table),
                             Simd::to_float(past[v]));
    }
    escaped |= put_symbols(Simd::to_bytes(k), Simd::to_bytes(past), x + i, symbols + i);
  }
  return escaped;
}

bool quantize(const float* x, int n, const Quantizer& q, uint8_t* symbols) {
  const int full = q.stochastic ? 0 : n / kLanes * kLanes;
  const auto rows = q.tables == nullptr ? quantize_rows : quantize_rows_by_tables;
  const bool escaped = rows(x, full, q, symbols);
  if (full == n) return escaped;
  return scalar_kernels()->quantize(x + full, n - full, after(full, q), symbols + full) || escaped;
}

// kSize: numbers of the table that are in use, rounded up.
template <int kSize>
SymbolCost cost_of_rows(const uint8_t* symbols, int n, const MagnitudeTable& table, int magnitudes,
                        uint32_t* escapes) {
  const Bytes::Table<kSize> low(table.cost_low), high(table.cost_high);
  const Bytes::Row past = Bytes::set(magnitudes + 1);
  Bytes::Sum low_sum, high_sum;
  uint32_t any_escape = 0;
  for (int i = 0; i < n; i += kLanes) {
    const Bytes::Row k = Bytes::min(Bytes::half_up(Bytes::load(symbols + i)), past);
    const uint32_t over = Bytes::bits(Bytes::equal(k, past));
    escapes[i / kLanes] = over;
    any_escape |= over;
    low_sum.add(low[k]);
    high_sum.add(high[k]);
  }
  return {low_sum.total() + (high_sum.total() << 8), any_escape};
}

SymbolCost cost(const uint8_t* symbols, int n, const MagnitudeTable& table, int magnitudes,
                uint32_t* escapes) {
  const int full = n / kLanes * kLanes, used = magnitudes + 2;
  const auto rows = used <= 16   ? cost_of_rows<16>
                    : used <= 32 ? cost_of_rows<32>
                                 : cost_of_rows<64>;
  const SymbolCost found = rows(symbols, full, table, magnitudes, escapes);
  if (full == n) return found;
  const SymbolCost rest =
      scalar_kernels()->cost(symbols + full, n - full, table, magnitudes, escapes + full / kLanes);
  return {found.sum + rest.sum, found.any_escape | rest.any_escape};
}

// What a lane has to know of its symbol; see EncodeEntry.
struct Symbol {
  Int freq, bias, reciprocal, shift;
};

// A state from which it has to give words away; see rans_full().
Int full_from(const Symbol& s) { return Simd::shift_left<19>(s.freq); }

// See rans_push().
Int push_symbol(Int state, const Symbol& s) {
  const Int quotient = Simd::shift_right(Simd::multiply_high(state, s.reciprocal), s.shift);
  return Simd::advance(state, quotient, s.freq, s.bias);
}

// One symbol on each lane of a vector; see rans_put().
Int put(Int state, const Symbol& s, uint16_t** words) {
  *words = Simd::push(&state, full_from(s), *words);
  return push_symbol(state, s);
}

Symbol unpack_entry(Int packed, Int reciprocal) {
  return {Simd::both(packed, Simd::set(0xfffu)),
          Simd::both(Simd::shift_right<12>(packed), Simd::set(0x1fffu)), reciprocal,
          Simd::shift_right<25>(packed)};
}

void load_lanes(const uint32_t* states, Int* lanes) {
  for (int v = 0; v < kVectors; ++v) lanes[v] = Simd::load(states + v * kWidth);
}

void store_lanes(const Int* lanes, uint32_t* states) {
  for (int v = 0; v < kVectors; ++v) Simd::store(states + v * kWidth, lanes[v]);
}

// Where each element's table begins, in units of 4 bytes; its tables lie `stride` bytes apart.
template <uint32_t stride>
Int table_base(const uint8_t* choice) {
  static_assert(stride % 4 == 0, "gathers count in 4 bytes");
  return Simd::multiply(Simd::load_bytes(choice), Simd::set(stride / 4));
}

Symbol gather_symbol(const uint8_t* symbols, const EncodeTable* table, const uint8_t* choice) {
  static_assert(offsetof(EncodeTable, entry) == 0 && sizeof(EncodeEntry) == 8, "gathered");
  const uint32_t* entries = reinterpret_cast<const uint32_t*>(table);
  Int index = Simd::shift_left<1>(Simd::load_bytes(symbols));
  if (choice != nullptr) index = Simd::add(index, table_base<sizeof(EncodeTable)>(choice));
  return unpack_entry(Simd::gather(entries + 1, index), Simd::gather(entries, index));
}

uint16_t* encode(uint32_t* states, const uint8_t* symbols, int n, const EncodeTable* table,
                 const uint8_t* choice, uint16_t* end) {
  const int full = n / kLanes * kLanes;
  if (n > full) {
    const uint8_t* rest = choice != nullptr ? choice + full : nullptr;
    end = scalar_kernels()->encode(states, symbols + full, n - full, table, rest, end);
  }
  Int lanes[kVectors];
  load_lanes(states, lanes);
  for (int i = full - kLanes; i >= 0; i -= kLanes) {
    for (int v = kVectors - 1; v >= 0; --v) {
      const int at = i + v * kWidth;
      const uint8_t* own = choice != nullptr ? choice + at : nullptr;
      lanes[v] = put(lanes[v], gather_symbol(symbols + at, table, own), &end);
    }
  }
  store_lanes(lanes, states);
  return end;
}

// The entries of a MagnitudeTable. kSize: numbers of it that are in use, rounded up.
template <int kSize>
class Magnitudes {
 public:
  explicit Magnitudes(const MagnitudeTable& t)
      : freq_(Simd::kPackedEntries ? t.packed : t.freq),
        bias_(kSigned ? t.signed_bias : t.bias),
        reciprocal_(t.reciprocal),
        shift_(t.shift) {}

  // Of values x and their magnitudes; `past`: the magnitude of escapes, of which there are none
  // unless kEscapes. Sets where they are.
  template <bool kEscapes>
  Symbol of(Float x, Int k, Int past, Mask* over) const {
    if constexpr (kSigned) {
      *over = Simd::equal(k, past);
      const Int sign = Simd::both(Simd::shift_right<27>(Simd::as_int(x)), Simd::set(kSize + 0u));
      return {freq_[k], bias_[Simd::either(k, sign)], reciprocal_[k], shift_[k]};
    } else {
      // Zero and the escape have one symbol each; the others a second one for negative values.
      Mask minus = Simd::negative_nonzero(x, k);
      if constexpr (kEscapes) {
        *over = Simd::equal(k, past);
        minus = Simd::without(minus, *over);
      }
      Symbol symbol = entry(k);
      symbol.bias = Simd::add_where(minus, symbol.bias, symbol.freq);
      return symbol;
    }
  }

 private:
  static constexpr bool kSigned = Simd::kSignedLookUps && kSize == MagnitudeTable::kShort;
  static_assert(MagnitudeTable::kShort == 1 << (31 - 27), "where of() shifts a sign to");

  Symbol entry(Int k) const {
    if constexpr (Simd::kPackedEntries) return unpack_entry(freq_[k], reciprocal_[k]);
    return {freq_[k], bias_[k], reciprocal_[k], shift_[k]};
  }

  const Simd::Table<kSize> freq_;
  const Simd::Table<kSigned ? 2 * kSize : kSize> bias_;
  const Simd::Table<kSize> reciprocal_, shift_;
};

// One row. Its words are moved vector by vector, or at once where an instruction does it.
template <typename S, bool kEscapes, int kSize>
uint16_t* encode_row(const float* x, const Int* magnitudes, Int past,
                     const Magnitudes<kSize>& symbols, Int* lanes, uint16_t* end,
                     uint32_t* escapes) {
  Mask over[kVectors];
  if constexpr (S::kPushesRows) {
    Symbol row[kVectors];
    Int limits[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const Float value = Simd::load(x + v * kWidth);
      row[v] = symbols.template of<kEscapes>(value, magnitudes[v], past, &over[v]);
      limits[v] = full_from(row[v]);
    }
    end = S::push_row(lanes, limits, end);
    for (int v = 0; v < kVectors; ++v) lanes[v] = push_symbol(lanes[v], row[v]);
  } else {
    for (int v = kVectors - 1; v >= 0; --v) {
      const Float value = Simd::load(x + v * kWidth);
      const Symbol symbol = symbols.template of<kEscapes>(value, magnitudes[v], past, &over[v]);
      lanes[v] = put(lanes[v], symbol, &end);
    }
  }
  *escapes = kEscapes ? Simd::row_bits(over) : 0;
  return end;
}

template <int kSize>
uint16_t* encode_rows(uint32_t* states, const float* x, int n, const Quantizer& q,
                      const MagnitudeTable& table, uint16_t* end, uint32_t* escapes) {
  const Magnitudes<kSize> symbols(table);
  const Magnitudes<Simd::kLeastTable> short_symbols(table);
  const RowQuantizer quantizer(q);
  Int lanes[kVectors];
  load_lanes(states, lanes);
  for (int i = n - kLanes; i >= 0; i -= kLanes) {
    ask_for(x + i, -kBytesAhead);
    Int k[kVectors];
    const bool short_row = quantizer.magnitudes(x + i, k);
    uint32_t* row_escapes = &escapes[i / kLanes];
    if (kSize > Simd::kLeastTable && short_row) {
      end =
          encode_row<Simd, false>(x + i, k, quantizer.past, short_symbols, lanes, end, row_escapes);
    } else {
      end = encode_row<Simd, true>(x + i, k, quantizer.past, symbols, lanes, end, row_escapes);
    }
  }
  store_lanes(lanes, states);
  return end;
}

uint16_t* encode_values(uint32_t* states, const float* x, int n, const Quantizer& q,
                        const MagnitudeTable& table, uint16_t* end, uint32_t* escapes) {
  const int full = n / kLanes * kLanes;
  if (n > full)
    end = scalar_kernels()->encode_values(states, x + full, n - full, q, table, end,
                                          escapes + full / kLanes);
  const int used = q.magnitudes + 2;
  const auto rows = used <= Simd::kLeastTable ? encode_rows<Simd::kLeastTable>
                    : used <= 16              ? encode_rows<16>
                    : used <= 32              ? encode_rows<32>
                                              : encode_rows<64>;
  return rows(states, x, full, q, table, end, escapes);
}

// A decoding step of one vector: entries of the present symbols, and the lanes after them.
Int get(Int* lanes, const DecodeTable* table, const uint8_t* choice, const uint8_t** words) {
  Int slot = Simd::both(*lanes, Simd::set(kProbTotal - 1));
  if (choice != nullptr) slot = Simd::add(slot, table_base<sizeof(DecodeTable)>(choice));
  const Int entry = Simd::gather(table->slot, slot);
  const Int freq = Simd::both(Simd::shift_right<12>(entry), Simd::set(0xfffu));
  const Int offset = Simd::both(entry, Simd::set(0xfffu));
  const Int state = Simd::add(Simd::multiply(freq, Simd::shift_right<kProbBits>(*lanes)), offset);
  *lanes = Simd::pull(state, Simd::less(state, Simd::set(kRansLow)), words);
  return entry;
}

const uint8_t* decode(uint32_t* states, const DecodeTable* table, const uint8_t* choice, int n,
                      const uint8_t* words, uint8_t* symbols) {
  const int full = n / kLanes * kLanes;
  Int lanes[kVectors];
  load_lanes(states, lanes);
  for (int i = 0; i < full; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const int at = i + v * kWidth;
      const Int entry = get(&lanes[v], table, choice != nullptr ? choice + at : nullptr, &words);
      Simd::store_bytes(symbols + at,
                        Simd::both(Simd::shift_right<kEntrySymbolShift>(entry), Simd::set(0x7fu)));
    }
  }
  store_lanes(lanes, states);
  if (full == n) return words;
  return scalar_kernels()->decode(states, table, choice != nullptr ? choice + full : nullptr,
                                  n - full, words, symbols + full);
}

void dequantize(const uint8_t* symbols, int n, const LevelTable* levels, const uint8_t* choice,
                float step, bool accumulate, float* out) {
  const Float scale = Simd::set(step);
  int i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    Int index = Simd::load_bytes(symbols + i);
    if (choice != nullptr) index = Simd::add(index, table_base<sizeof(LevelTable)>(choice + i));
    Float value = Simd::multiply(scale, Simd::gather(levels->level, index));
    if (accumulate) value = Simd::add(Simd::load(out + i), value);
    Simd::store(out + i, value);
  }
  if (i == n) return;
  scalar_kernels()->dequantize(symbols + i, n - i, levels, choice != nullptr ? choice + i : nullptr,
                               step, accumulate, out + i);
}

// kSize: numbers of a LevelTable that are in use, rounded up.
template <int kBlocks, int kSize, bool accumulate>
void decode_rows(BlockDecode* blocks, int n) {
  // Copies: what is stored in the loop could change *blocks, as far as the compiler knows.
  BlockDecode local[kBlocks];
  Int lanes[kBlocks][kVectors];
  Float step[kBlocks];
  Simd::Levels<kSize> levels[kBlocks];
  for (int b = 0; b < kBlocks; ++b) {
    local[b] = blocks[b];
    levels[b].load(local[b].levels->level);
    load_lanes(local[b].states, lanes[b]);
    step[b] = Simd::set(local[b].step);
  }
  for (int i = 0; i < n; i += kLanes) {
    for (int b = 0; b < kBlocks && accumulate; ++b) ask_for(local[b].out + i, kBytesAhead);
    Int entries[kBlocks][kVectors];
    for (int v = 0; v < kVectors; ++v) {
      for (int b = 0; b < kBlocks; ++b) {
        const Int entry = get(&lanes[b][v], local[b].table, nullptr, &local[b].words);
        entries[b][v] = entry;
        float* out = local[b].out + i + v * kWidth;
        Float value = Simd::multiply(step[b], levels[b][entry]);
        if (accumulate) value = Simd::add(Simd::load(out), value);
        Simd::store(out, value);
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      const uint32_t escapes = Simd::row_signs(entries[b]);
      local[b].escapes[i / kLanes] = escapes;
      local[b].any_escape |= escapes;
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    store_lanes(lanes[b], blocks[b].states);
    blocks[b].words = local[b].words;
    blocks[b].any_escape = local[b].any_escape;
  }
}

template <int kBlocks, bool accumulate>
void decode_rows_of(BlockDecode* blocks, int n) {
  int magnitudes = 0;
  for (int b = 0; b < kBlocks; ++b)
    magnitudes = blocks[b].magnitudes > magnitudes ? blocks[b].magnitudes : magnitudes;
  const auto rows = magnitudes <= 7    ? decode_rows<kBlocks, 16, accumulate>
                    : magnitudes <= 15 ? decode_rows<kBlocks, 32, accumulate>
                    : magnitudes <= 31 ? decode_rows<kBlocks, 64, accumulate>
                                       : decode_rows<kBlocks, 128, accumulate>;
  rows(blocks, n);
}

void decode_values(BlockDecode* block, bool accumulate) {
  const int full = block->n / kLanes * kLanes;
  (accumulate ? decode_rows_of<1, true> : decode_rows_of<1, false>)(block, full);
  if (full == block->n) return;
  BlockDecode rest = *block;
  rest.n -= full;
  rest.out += full;
  rest.escapes += full / kLanes;
  scalar_kernels()->decode_values(&rest, accumulate);
  block->words = rest.words;
  block->any_escape |= rest.any_escape;
}

void decode_pair(BlockDecode* blocks, bool accumulate) {
  if (Simd::kPairs) {
    (accumulate ? decode_rows_of<2, true> : decode_rows_of<2, false>)(blocks, kBlock);
  } else {
    decode_values(&blocks[0], accumulate);
    decode_values(&blocks[1], accumulate);
  }
}

// One row, which may hold escapes only if kEscapes; kSize: numbers of the magnitudes' levels.
template <bool kEscapes, int kSize>
uint32_t restore_row(const float* x, const Int* magnitudes, Int past,
                     const Simd::Levels<kSize>& levels, Float step, float* out) {
  Mask over[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const Float value = Simd::load(x + v * kWidth);
    const Float level = Simd::negate_where_positive(value, levels.negative(magnitudes[v]));
    // Adding zero makes -0, which no symbol stands for, +0.
    Float restored = Simd::add(Simd::multiply(step, level), Simd::set(0.0f));
    if constexpr (kEscapes) {
      over[v] = Simd::equal(magnitudes[v], past);
      restored = Simd::select(over[v], value, restored);
    }
    Simd::store(out + v * kWidth, restored);
  }
  return kEscapes ? Simd::row_bits(over) : 0;
}

// kSize: numbers of the LevelTable that are in use, rounded up.
template <int kSize>
void restore_rows(const float* x, int n, const Quantizer& q, const LevelTable& table, float step,
                  float* out, uint32_t* escapes) {
  constexpr int kShort = 2 * Simd::kLeastTable;
  Simd::Levels<kSize> levels;
  Simd::Levels<kShort> short_levels;
  levels.load(table.level);
  short_levels.load(table.level);
  const RowQuantizer quantizer(q);
  const Float factor = Simd::set(step);
  for (int i = 0; i < n; i += kLanes) {
    ask_for(x + i, kBytesAhead);
    Int k[kVectors];
    const bool short_row = quantizer.magnitudes(x + i, k);
    escapes[i / kLanes] =
        kSize > kShort && short_row
            ? restore_row<false>(x + i, k, quantizer.past, short_levels, factor, out + i)
            : restore_row<true>(x + i, k, quantizer.past, levels, factor, out + i);
  }
}

void restore(const float* x, int n, const Quantizer& q, const LevelTable& levels, float step,
             float* out, uint32_t* escapes) {
  const int full = n / kLanes * kLanes;
  const auto rows = q.magnitudes <= 7    ? restore_rows<16>
                    : q.magnitudes <= 15 ? restore_rows<32>
                    : q.magnitudes <= 31 ? restore_rows<64>
                                         : restore_rows<128>;
  rows(x, full, q, levels, step, out, escapes);
  if (full < n)
    scalar_kernels()->restore(x + full, n - full, q, levels, step, out + full,
                              escapes + full / kLanes);
}

void split_low(const float* x, int n, const Quantizer& q, int shift, float* high, uint32_t* low) {
  const int full = q.stochastic ? 0 : n / kWidth * kWidth;
  const Float inverse = Simd::set(q.inverse_step), limit = Simd::set(kMagnitudeLimit);
  Float bias = Simd::set(q.bias);
  // Shifted as unsigned numbers: k + half and this.
  const uint32_t origin = 1u << 31;
  const Int up = Simd::set(origin + (1u << (shift - 1))), down = Simd::set(origin >> shift);
  const Int none = Simd::set(0u), mask = Simd::set((1u << shift) - 1);
  const Int count = Simd::set(static_cast<uint32_t>(shift));
  for (int i = 0; i < full; i += kWidth) {
    if (q.tables != nullptr) bias = Simd::gather(q.biases, Simd::load_bytes(q.tables + i));
    const Float v = Simd::load(x + i);
    const Int magnitude = quantize_vector(v, inverse, bias, limit);
    const Int k = Simd::select(Simd::negative(v), Simd::subtract(none, magnitude), magnitude);
    const Int sum = Simd::add(k, up);
    Simd::store(low + i, Simd::both(sum, mask));
    Simd::store(high + i, Simd::to_float(Simd::subtract(Simd::shift_right(sum, count), down)));
  }
  if (full < n)
    scalar_kernels()->split_low(x + full, n - full, after(full, q), shift, high + full, low + full);
}

void join_low(const float* high, const uint32_t* low, int n, int shift, float step, bool accumulate,
              float* out) {
  const int full = n / kWidth * kWidth;
  const Float factor = Simd::set(step), scale = Simd::set(static_cast<float>(1 << shift));
  const Int half = Simd::set(1u << (shift - 1));
  for (int i = 0; i < full; i += kWidth) {
    const Float rest = Simd::to_float(Simd::subtract(Simd::load(low + i), half));
    const Float k = Simd::add(Simd::multiply(Simd::load(high + i), scale), rest);
    Float value = Simd::multiply(factor, k);
    if (accumulate) value = Simd::add(Simd::load(out + i), value);
    Simd::store(out + i, value);
  }
  if (full < n)
    scalar_kernels()->join_low(high + full, low + full, n - full, shift, step, accumulate,
                               out + full);
}

// One step of the search for the interval of each magnitude, and those after it; see Codebook.
template <int kBits, int kStep>
Int find_intervals(Float magnitude, const float* thresholds, Int path) {
  if constexpr (kStep + 1 < kBits) {
    constexpr int kSize = kStep <= 3 ? 8 : 1 << kStep;  // numbers of the step, rounded up
    const Float threshold = Simd::look_up<kSize>(thresholds + (1 << kStep), path);
    path =
        Simd::add_where(Simd::reached(magnitude, threshold), Simd::add(path, path), Simd::set(1u));
    return find_intervals<kBits, kStep + 1>(magnitude, thresholds, path);
  }
  return path;
}

template <int kBits>
void fixed_code_vectors(const float* x, int n, float inverse, const Codebook& book,
                        uint8_t* codes) {
  const Float factor = Simd::set(inverse);
  const Bytes::Row sign_bit = Bytes::set(1 << (kBits - 1));
  for (int i = 0; i < n; i += kLanes) {
    ask_for(x + i, kBytesAhead);
    Int index[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const Float magnitude = Simd::multiply(Simd::abs(Simd::load(x + i + v * kWidth)), factor);
      index[v] = find_intervals<kBits, 0>(magnitude, book.thresholds, Simd::set(0u));
    }
    const Bytes::Row signs = Bytes::both(Simd::negative_bytes(x + i), sign_bit);
    Bytes::store(codes + i, Bytes::add(Simd::to_bytes(index), signs));
  }
}

void fixed_codes(const float* x, int n, float inverse, const Codebook& book, uint8_t* codes) {
  static constexpr void (*widths[])(const float*, int, float, const Codebook&, uint8_t*) = {
      fixed_code_vectors<1>, fixed_code_vectors<2>, fixed_code_vectors<3>, fixed_code_vectors<4>,
      fixed_code_vectors<5>, fixed_code_vectors<6>, fixed_code_vectors<7>, fixed_code_vectors<8>};
  const int full = n / kLanes * kLanes;
  widths[book.bits - 1](x, full, inverse, book, codes);
  if (full < n) scalar_kernels()->fixed_codes(x + full, n - full, inverse, book, codes + full);
}

// Whole rows while a row's two stores end within the block's bytes; the rest by words.
template <int kBits>
void pack_rows(const uint8_t* codes, int n, uint8_t* out) {
  constexpr int kRowBytes = kLanes * kBits / 8, kReach = kRowBytes / 2 + 16;
  const int bytes = (n * kBits + 7) / 8;
  const int last = bytes - kReach;  // where a row may begin
  const int by_bytes = last < 0 ? 0 : last / kRowBytes + 1;
  const int rows = by_bytes < n / kLanes ? by_bytes : n / kLanes;
  for (int r = 0; r < rows; ++r)
    Bytes::store_packed<kBits>(out + r * kRowBytes, Bytes::load(codes + r * kLanes));
  pack_bits<kBits>(codes + rows * kLanes, n - rows * kLanes, out + rows * kRowBytes);
}

void pack_vectors(const uint8_t* codes, int n, int bits, uint8_t* out) {
  // Words of 1, 2, 4 and 8 bytes have whole moves, which compilers make vectors of.
  static constexpr void (*widths[])(const uint8_t*, int, uint8_t*) = {
      pack_bits<1>, pack_bits<2>, pack_rows<3>, pack_bits<4>,
      pack_rows<5>, pack_rows<6>, pack_rows<7>, pack_bits<8>};
  widths[bits - 1](codes, n, out);
}

template <int kBits>
void fixed_value_rows(const uint8_t* packed, const uint8_t* end, int n, float scale,
                      const Codebook& book, bool accumulate, float* out) {
  constexpr int kRowBytes = kLanes * kBits / 8, kSize = kBits <= 3 ? 8 : 1 << kBits;
  // Where what is loaded for a row's last kCodeBytes codes ends.
  constexpr int kReach = (kLanes - Simd::kCodeBytes) * kBits / 8 + Simd::kCodeBytes;
  uint8_t copy[kLanes + Simd::kCodeBytes] = {};  // of rows at the end
  const Float factor = Simd::set(scale);
  for (int i = 0; i < n; i += kLanes) {
    if (accumulate) ask_for(out + i, kBytesAhead);
    const uint8_t* row = packed + i / kLanes * kRowBytes;
    if (end - row < kReach) {
      memcpy(copy, row, kRowBytes);
      row = copy;
    }
    for (int v = 0; v < kVectors; ++v) {
      const Int codes = Simd::load_codes<kBits>(row, v);
      float* to = out + i + v * kWidth;
      Float value = Simd::multiply(factor, Simd::look_up<kSize>(book.signed_levels, codes));
      if (accumulate) value = Simd::add(Simd::load(to), value);
      Simd::store(to, value);
    }
  }
}

void fixed_values(const uint8_t* packed, const uint8_t* end, int n, float scale,
                  const Codebook& book, bool accumulate, float* out) {
  static constexpr void (*widths[])(const uint8_t*, const uint8_t*, int, float, const Codebook&,
                                    bool, float*) = {
      fixed_value_rows<1>, fixed_value_rows<2>, fixed_value_rows<3>, fixed_value_rows<4>,
      fixed_value_rows<5>, fixed_value_rows<6>, fixed_value_rows<7>, fixed_value_rows<8>};
  const int full = n / kLanes * kLanes;
  widths[book.bits - 1](packed, end, full, scale, book, accumulate, out);
  if (full < n)
    scalar_kernels()->fixed_values(packed + full * book.bits / 8, end, n - full, scale, book,
                                   accumulate, out + full);
}

constexpr Kernels vector_kernels(const char* name) {
  return {name,    widen,         narrow,    moments,     quantize,      cost,
          encode,  encode_values, decode,    dequantize,  decode_values, decode_pair,
          restore, split_low,     join_low,  fixed_codes, fixed_values,  pack_vectors,
          unpack,  project,       add_outer, row_product};
}

}  // namespace
}  // namespace gct
