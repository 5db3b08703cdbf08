// Products of a tall matrix with a narrow one, for low-rank parts. One body each, compiled once for
// every instruction set that has kernels (scalar.cpp, vector_kernels.h): 16 sums that belong to 16
// different results are one vector of the compiler's, so each sum keeps its order and all
// implementations return the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace gct {
namespace {

using Vector = float __attribute__((vector_size(4 * kLowRankWidth)));

// By reference: vectors have no calling convention that all instruction sets share.
inline void load(const float* p, Vector& v) { memcpy(&v, p, sizeof v); }
inline void store(float* p, const Vector& v) { memcpy(p, &v, sizeof v); }

template <int kRows>
void project_rows(const float* x, int64_t stride, int64_t columns, const float* v, float* y) {
  Vector sum[kRows] = {};
  for (int64_t j = 0; j < columns; ++j) {
    Vector right;
    load(v + j * kLowRankWidth, right);
    for (int q = 0; q < kRows; ++q) sum[q] += x[q * stride + j] * right;
  }
  for (int q = 0; q < kRows; ++q) store(y + q * kLowRankWidth, sum[q]);
}

void project(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* v,
             float* y) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8)
    project_rows<8>(x + row * stride, stride, columns, v, y + row * kLowRankWidth);
  for (; row < rows; ++row)
    project_rows<1>(x + row * stride, stride, columns, v, y + row * kLowRankWidth);
}

template <int kRows>
void add_outer_rows(const float* x, int64_t stride, int64_t columns, const float* y, float* z) {
  Vector factor[kRows];
  for (int q = 0; q < kRows; ++q) load(y + q * kLowRankWidth, factor[q]);
  for (int64_t j = 0; j < columns; ++j) {
    Vector sum;
    load(z + j * kLowRankWidth, sum);
    for (int q = 0; q < kRows; ++q) sum += x[q * stride + j] * factor[q];
    store(z + j * kLowRankWidth, sum);
  }
}

void add_outer(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* y,
               float* z) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8)
    add_outer_rows<8>(x + row * stride, stride, columns, y + row * kLowRankWidth, z);
  for (; row < rows; ++row)
    add_outer_rows<1>(x + row * stride, stride, columns, y + row * kLowRankWidth, z);
}

void row_product(const float* a, const float* c, int64_t stride, int rank, int64_t n, float* out) {
  constexpr int64_t kTile = 4 * kLowRankWidth;
  int64_t begin = 0;
  for (; begin + kTile <= n; begin += kTile) {
    Vector sum[4] = {};
    for (int k = 0; k < rank; ++k) {
      const float* row = c + k * stride + begin;
      for (int i = 0; i < 4; ++i) {
        Vector right;
        load(row + i * kLowRankWidth, right);
        sum[i] += a[k] * right;
      }
    }
    for (int i = 0; i < 4; ++i) store(out + begin + i * kLowRankWidth, sum[i]);
  }
  for (; begin < n; ++begin) {
    float sum = 0;
    for (int k = 0; k < rank; ++k) sum += a[k] * c[k * stride + begin];
    out[begin] = sum;
  }
}

}  // namespace
}  // namespace gct
