// rANS (Duda 2013, arXiv 1311.2540) on kLanes interleaved 32-bit states with 16-bit words.
//
// Three things surprise on first reading: the encoder runs backwards over the symbols; it writes
// words from the end of its buffer towards the start; lanes share one word sequence, in which a
// step's words stand in lane order. A state lives in [kRansLow, kRansLow << 16). The encoder starts
// every lane at kRansLow, so the decoder must end there: that and an exactly used-up word sequence
// are the integrity checks.
#pragma once

#include "core/gg_tables.h"

namespace gct {

constexpr uint32_t kRansLow = 1u << 15;

// What encoding one symbol needs: x -> x + bias + (x / freq) * (kProbTotal - freq), the division as
// a multiplication. With x < freq << 19 and the rounded-up reciprocal it is exact (Granlund and
// Montgomery 1994).
struct EncodeEntry {
  uint32_t reciprocal;
  uint32_t packed;  // freq: 12 bits, bias: 13 bits, shift: 4 bits
};

inline EncodeEntry make_encode_entry(uint32_t freq, uint32_t cum) {
  if (freq == 1) return {~0u, 1u | ((cum + kProbTotal - 1) << 12)};  // x * (2^32 - 1) >> 32 = x - 1
  uint32_t shift = 0;
  while (freq > (1u << shift)) ++shift;
  const uint64_t one = 1ull << (shift + 31);
  return {static_cast<uint32_t>((one + freq - 1) / freq), freq | (cum << 12) | ((shift - 1) << 25)};
}

// Whether a state has to give its low 16 bits away before it takes a symbol.
GCT_HD inline bool rans_full(uint32_t x, const EncodeEntry& e) {
  return x >= (e.packed & 0xfffu) << 19;
}

// The step of the encoder after renormalization.
GCT_HD inline uint32_t rans_push(uint32_t x, const EncodeEntry& e) {
  const uint32_t quotient =
      static_cast<uint32_t>((static_cast<uint64_t>(x) * e.reciprocal) >> 32) >> (e.packed >> 25);
  return x + ((e.packed >> 12) & 0x1fffu) + quotient * (kProbTotal - (e.packed & 0xfffu));
}

inline void rans_put(uint32_t* state, const EncodeEntry& e, uint16_t** words) {
  if (rans_full(*state, e)) {
    *--*words = static_cast<uint16_t>(*state);
    *state >>= 16;
  }
  *state = rans_push(*state, e);
}

// Entry of a decoding table, one a slot: slot - cum 12 bits, freq 12 bits, symbol 7 bits, and the
// highest bit for the escape.
constexpr int kEntrySymbolShift = 24;

inline uint32_t make_decode_entry(uint32_t symbol, uint32_t freq, uint32_t offset) {
  return offset | (freq << 12) | (symbol << kEntrySymbolShift) |
         (symbol == kEscapeSymbol ? 1u << 31 : 0);
}

GCT_HD inline uint32_t entry_symbol(uint32_t entry) { return (entry >> kEntrySymbolShift) & 0x7fu; }

// The step of the decoder before renormalization.
GCT_HD inline uint32_t rans_advance(uint32_t x, uint32_t entry) {
  return ((entry >> 12) & 0xfffu) * (x >> kProbBits) + (entry & 0xfffu);
}

// One symbol; a word is taken where the state runs low.
inline uint32_t rans_get(uint32_t* state, const uint32_t* slots, const uint8_t** words) {
  const uint32_t entry = slots[*state & (kProbTotal - 1)];
  uint32_t x = rans_advance(*state, entry);
  if (x < kRansLow) {
    x = (x << 16) | load_le<uint16_t>(*words);
    *words += 2;
  }
  *state = x;
  return entry_symbol(entry);
}

}  // namespace gct
