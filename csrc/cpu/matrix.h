// Products of a tall matrix with a narrow one, for low-rank parts. One body each, compiled once for
// every instruction set that has kernels (scalar.cpp, vector_kernels.h): the lanes of a vector are
// sums that belong to different results, so each sum keeps its order and all implementations return
// the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace gct {
namespace {

// A register's width. Of wider vectors the compiler makes several and keeps them in memory.
#if defined(__AVX512F__)
constexpr int kLanesOfVector = 16;
#elif defined(__AVX2__)
constexpr int kLanesOfVector = 8;
#else
constexpr int kLanesOfVector = 4;
#endif
static_assert(kLowRankWidth % kLanesOfVector == 0, "a row is whole vectors");
constexpr int kSums = 8;  // side by side: AVX2 has 16 registers, for what they are made of, too
constexpr int kParts = kLowRankWidth / kLanesOfVector;  // vectors of a row of the narrow matrix
using Vector = float __attribute__((vector_size(4 * kLanesOfVector)));

// By reference: vectors have no calling convention that all instruction sets share.
inline void load(const float* p, Vector& v) { memcpy(&v, p, sizeof v); }
inline void store(float* p, const Vector& v) { memcpy(p, &v, sizeof v); }

template <int kRows>
void project_rows(const float* x, int64_t stride, int64_t columns, const float* v, float* y) {
  Vector sum[kRows][kParts] = {};
  for (int64_t j = 0; j < columns; ++j) {
    Vector right[kParts];
    for (int p = 0; p < kParts; ++p) load(v + j * kLowRankWidth + p * kLanesOfVector, right[p]);
    for (int q = 0; q < kRows; ++q) {
      for (int p = 0; p < kParts; ++p) sum[q][p] += x[q * stride + j] * right[p];
    }
  }
  for (int q = 0; q < kRows; ++q) {
    for (int p = 0; p < kParts; ++p) store(y + q * kLowRankWidth + p * kLanesOfVector, sum[q][p]);
  }
}

void project(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* v,
             float* y) {
  constexpr int kRows = kSums / kParts;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows)
    project_rows<kRows>(x + row * stride, stride, columns, v, y + row * kLowRankWidth);
  for (; row < rows; ++row)
    project_rows<1>(x + row * stride, stride, columns, v, y + row * kLowRankWidth);
}

template <int kRows>
void add_outer_rows(const float* x, int64_t stride, int64_t columns, const float* y, float* z) {
  for (int64_t j = 0; j < columns; ++j) {
    Vector sum[kParts];
    for (int p = 0; p < kParts; ++p) load(z + j * kLowRankWidth + p * kLanesOfVector, sum[p]);
    for (int q = 0; q < kRows; ++q) {
      for (int p = 0; p < kParts; ++p) {
        Vector factor;
        load(y + q * kLowRankWidth + p * kLanesOfVector, factor);
        sum[p] += x[q * stride + j] * factor;
      }
    }
    for (int p = 0; p < kParts; ++p) store(z + j * kLowRankWidth + p * kLanesOfVector, sum[p]);
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

// Sums of kCount vectors side by side.
template <int kCount>
void product_tile(const float* a, const float* c, int64_t stride, int rank, float* out) {
  Vector sum[kCount] = {};
  for (int k = 0; k < rank; ++k) {
    for (int i = 0; i < kCount; ++i) {
      Vector right;
      load(c + k * stride + i * kLanesOfVector, right);
      sum[i] += a[k] * right;
    }
  }
  for (int i = 0; i < kCount; ++i) store(out + i * kLanesOfVector, sum[i]);
}

void row_product(const float* a, const float* c, int64_t stride, int rank, int64_t n, float* out) {
  constexpr int64_t kTile = kSums * kLanesOfVector;
  int64_t begin = 0;
  for (; begin + kTile <= n; begin += kTile)
    product_tile<kSums>(a, c + begin, stride, rank, out + begin);
  for (; begin + kLanesOfVector <= n; begin += kLanesOfVector)
    product_tile<1>(a, c + begin, stride, rank, out + begin);
  for (; begin < n; ++begin) {
    float sum = 0;
    for (int k = 0; k < rank; ++k) sum += a[k] * c[k * stride + begin];
    out[begin] = sum;
  }
}

}  // namespace
}  // namespace gct
