// The block-level kernels that implementations differ in. All other code of the codec exists once.
//
// Every kernel works on one block of n <= kBlock elements and every implementation returns the same
// bits: sums are taken lane by lane (element i into lane i % kLanes) and then lanes pairwise,
// halving the number of lanes each time.
#pragma once

#include "core/coding_tables.h"
#include "core/quantize.h"

namespace gct {

// Columns of the narrow matrices that the products below work with.
constexpr int kLowRankWidth = 16;

struct BlockMoments {
  float sum_abs;
  float sum_square;
};

struct Kernels {
  const char* name;

  BlockMoments (*moments)(const float* x, int n);

  // Symbols of a block; true if one of them is an escape.
  bool (*quantize)(const float* x, int n, const Quantizer& q, uint8_t* symbols);

  // The next three take the block's one table and `choice` = nullptr, or all tables of a shape and
  // in `choice` the index of each element's.

  // Encodes symbols backwards, words from `end` towards lower addresses; returns the new first
  // word.
  uint16_t* (*encode)(uint32_t* states, const uint8_t* symbols, int n, const EncodeTable* table,
                      const uint8_t* choice, uint16_t* end);

  // Decodes n symbols; returns the first word not used, or nullptr if words ran out.
  const uint16_t* (*decode)(uint32_t* states, const DecodeTable* table, const uint8_t* choice,
                            int n, const uint16_t* words, const uint16_t* words_end,
                            uint8_t* symbols);

  // out[i] = or += step * level[symbol]
  void (*dequantize)(const uint8_t* symbols, int n, const LevelTable* levels, const uint8_t* choice,
                     float step, bool accumulate, float* out);

  // Products with narrow matrices (cpu/matrix.h). x is rows x columns with `stride` elements from
  // one row to the next; v and z are columns x kLowRankWidth, y is rows x kLowRankWidth.
  // y = x v, summed over the columns in order.
  void (*project)(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* v,
                  float* y);
  // z += transpose(x) y, summed over the rows in order.
  void (*add_outer)(const float* x, int64_t stride, int64_t rows, int64_t columns, const float* y,
                    float* z);
  // out[j] = sum over k < rank, in order, of a[k] * c[k * stride + j], for j < n.
  void (*row_product)(const float* a, const float* c, int64_t stride, int rank, int64_t n,
                      float* out);
};

// Implementations usable on this machine, best first; the last is the scalar reference.
const Kernels* const* usable_kernels(int* count);
const Kernels& kernels();  // the one in use

const Kernels* scalar_kernels();
const Kernels* avx512_kernels();  // nullptr where not compiled or not supported by this processor

// Run-time forms of the generated tables, built at first use, thread-safe, never freed.
// The first of the kTablesPerShape tables of a shape.
const EncodeTable* encode_tables(int shape);
const DecodeTable* decode_tables(int shape);
const LevelTable* level_tables(int shape, bool stochastic);
// One of them, by its index among all.
inline const EncodeTable& encode_table(int table) {
  return encode_tables(table / tables::kTablesPerShape)[table % tables::kTablesPerShape];
}

// Of the classes, by model.
const EncodeTable& class_encode_table(int model);
const DecodeTable& class_decode_table(int model);

}  // namespace gct
