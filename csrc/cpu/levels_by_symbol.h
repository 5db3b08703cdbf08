// The numbers of a LevelTable by symbol, for instruction sets on which a table as long as that is
// looked up as quickly as half of it.
#pragma once

#include "core/rans.h"

namespace gct {
namespace {

// kSize: numbers that are in use, rounded up; the escape's low bits point at a zero among them.
template <typename Simd, int kSize>
class LevelsBySymbol {
 public:
  using Float = typename Simd::Float;
  using Int = typename Simd::Int;

  void load(const float* level) { level_ = level; }
  // Of -k: symbol 2 k.
  Float negative(Int k) const {
    return Simd::template look_up<kSize>(level_, Simd::template shift_left<1>(k));
  }
  // Of the symbol of a decoding entry.
  Float operator[](Int entry) const {
    const Int symbol = Simd::template shift_right<kEntrySymbolShift>(entry);
    return Simd::template look_up<kSize>(level_, symbol);
  }

 private:
  const float* level_;
};

}  // namespace
}  // namespace gct
