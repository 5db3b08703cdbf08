// Which of a block's elements have no symbol of their own: a bit each, as Kernels::encode_values
// has them.
#pragma once

#include "core/gg_tables.h"

namespace gct {

// The numbers of the elements whose bit is set, in order: for (const int i : Escapes(bits, n)).
class Escapes {
 public:
  Escapes(const uint32_t* bits, int n) : bits_(bits), rows_((n + kLanes - 1) / kLanes) {}

  class Iterator {
   public:
    Iterator(const uint32_t* bits, int row, int rows) : bits_(bits), row_(row), rows_(rows) {
      if (row_ < rows_) left_ = bits_[row_];
      pass_rows_without();
    }
    int operator*() const { return row_ * kLanes + __builtin_ctz(left_); }
    Iterator& operator++() {
      left_ &= left_ - 1;
      pass_rows_without();
      return *this;
    }
    bool operator!=(const Iterator& other) const {
      return row_ != other.row_ || left_ != other.left_;
    }

   private:
    void pass_rows_without() {
      while (left_ == 0 && row_ < rows_) {
        if (++row_ < rows_) left_ = bits_[row_];
      }
    }

    const uint32_t* bits_;
    int row_, rows_;
    uint32_t left_ = 0;  // of the row
  };
  Iterator begin() const { return {bits_, 0, rows_}; }
  Iterator end() const { return {bits_, rows_, rows_}; }

 private:
  const uint32_t* bits_;
  int rows_;
};

// Of a block's symbols.
inline void find_escapes(const uint8_t* symbols, int n, uint32_t* bits) {
  for (int row = 0; row * kLanes < n; ++row) {
    bits[row] = 0;
    for (int i = row * kLanes; i < n && i < (row + 1) * kLanes; ++i)
      bits[row] |= uint32_t{symbols[i] == kEscapeSymbol} << (i % kLanes);
  }
}

}  // namespace gct
