// Products of a tall matrix with a narrow one, for low-rank parts. One body each, compiled once for
// every instruction set that has kernels (scalar.cpp, avx512.cpp): the compiler vectorizes over the
// narrow side, so that sums keep their order and all implementations return the same bits.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace gct {
namespace {

template <int kRows>
void project_rows(const float* x, int64_t stride, int64_t columns, const float* v, float* y) {
  float sum[kRows][kLowRankWidth] = {};
  for (int64_t j = 0; j < columns; ++j) {
    for (int q = 0; q < kRows; ++q) {
      const float value = x[q * stride + j];
      for (int k = 0; k < kLowRankWidth; ++k) sum[q][k] += value * v[j * kLowRankWidth + k];
    }
  }
  for (int q = 0; q < kRows; ++q) {
    for (int k = 0; k < kLowRankWidth; ++k) y[q * kLowRankWidth + k] = sum[q][k];
  }
}

void project(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* v,
             float* y) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4)
    project_rows<4>(x + row * stride, stride, columns, v, y + row * kLowRankWidth);
  for (; row < rows; ++row)
    project_rows<1>(x + row * stride, stride, columns, v, y + row * kLowRankWidth);
}

template <int kRows>
void add_outer_rows(const float* x, int64_t stride, int64_t columns, const float* y, float* z) {
  float factor[kRows][kLowRankWidth];
  for (int q = 0; q < kRows; ++q) {
    for (int k = 0; k < kLowRankWidth; ++k) factor[q][k] = y[q * kLowRankWidth + k];
  }
  for (int64_t j = 0; j < columns; ++j) {
    float sum[kLowRankWidth];
    for (int k = 0; k < kLowRankWidth; ++k) sum[k] = z[j * kLowRankWidth + k];
    for (int q = 0; q < kRows; ++q) {
      const float value = x[q * stride + j];
      for (int k = 0; k < kLowRankWidth; ++k) sum[k] += value * factor[q][k];
    }
    for (int k = 0; k < kLowRankWidth; ++k) z[j * kLowRankWidth + k] = sum[k];
  }
}

void add_outer(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* y,
               float* z) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4)
    add_outer_rows<4>(x + row * stride, stride, columns, y + row * kLowRankWidth, z);
  for (; row < rows; ++row)
    add_outer_rows<1>(x + row * stride, stride, columns, y + row * kLowRankWidth, z);
}

void row_product(const float* a, const float* c, int64_t stride, int rank, int64_t n, float* out) {
  constexpr int kTile = 64;
  int64_t begin = 0;
  for (; begin + kTile <= n; begin += kTile) {
    float sum[kTile] = {};
    for (int k = 0; k < rank; ++k) {
      const float* row = c + k * stride + begin;
      for (int j = 0; j < kTile; ++j) sum[j] += a[k] * row[j];
    }
    for (int j = 0; j < kTile; ++j) out[begin + j] = sum[j];
  }
  for (; begin < n; ++begin) {
    float sum = 0;
    for (int k = 0; k < rank; ++k) sum += a[k] * c[k * stride + begin];
    out[begin] = sum;
  }
}

}  // namespace
}  // namespace gct
