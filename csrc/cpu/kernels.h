// The block-level kernels that implementations differ in. All other code of the codec exists once.
//
// Every kernel but for the conversions works on one block of n <= kBlock elements, and every
// implementation returns the same bits: sums are taken lane by lane (element i into lane i %
// kLanes) and then lanes pairwise, halving the number of lanes each time.
#pragma once

#include "core/coding_tables.h"
#include "core/quantize.h"

namespace gct {

// Columns of the narrow matrices that the products below work with.
constexpr int kLowRankWidth = 16;

// The same entries by magnitude, with 0 for the zero symbol and one past the alphabet's largest for
// the escape; for a whole block of magnitudes at once. A negative value's bias is larger by freq.
struct MagnitudeTable {
  static constexpr int kSize = 64;
  uint32_t freq[kSize];
  uint32_t bias[kSize];  // of positive values
  static constexpr int kShort = 16;
  uint32_t signed_bias[2 * kShort];  // of the first kShort, then the same for negative values
  uint32_t reciprocal[kSize];
  uint32_t shift[kSize];
  uint32_t packed[kSize];                     // freq, bias and shift as in EncodeEntry
  uint8_t cost_low[kSize], cost_high[kSize];  // two bytes of the code length, in 1/4096 bit
};
static_assert(tables::kMaxMagnitude + 2 <= MagnitudeTable::kSize, "magnitudes have their places");

struct BlockMoments {
  float sum_abs;
  float sum_square;
};

// Codebook of kind fixed, in units of mean |x|.
struct Codebook {
  int bits;
  // Midpoints between levels as a search meets them: 2^l of search step l from number 2^l on, that
  // of the path so far (one bit a step) among them. So the last steps alone need large tables.
  // Number 0 is not used; look-ups of more than a step's numbers read what lies behind.
  float thresholds[128];
  float signed_levels[256];  // by code

  Codebook(int shape, int bits);
};

// A block with one table on its way from words to values.
struct BlockDecode {
  uint32_t* states = nullptr;
  const uint8_t* words = nullptr;  // moves on
  const DecodeTable* table = nullptr;
  const LevelTable* levels = nullptr;
  int magnitudes = 0;  // of the table
  float step = 0;
  int n = 0;
  float* out = nullptr;
  uint32_t* escapes = nullptr;  // as in encode_values
  uint32_t any_escape = 0;      // kernels set bits that are set in any of them
};

struct SymbolCost {
  uint32_t sum = 0;         // in 1/4096 bit, without extra bits
  uint32_t any_escape = 0;  // bits that are set in any of `escapes`
};

struct Kernels {
  const char* name;

  // Halves as floats, and floats rounded to halves: bfloat16 or float16, see core/convert.h.
  void (*widen)(const uint16_t* halves, int64_t n, bool bfloat16, float* out);
  void (*narrow)(const float* x, int64_t n, bool bfloat16, uint16_t* out);

  BlockMoments (*moments)(const float* x, int n);

  // Symbols of a block; true if one of them is an escape.
  bool (*quantize)(const float* x, int n, const Quantizer& q, uint8_t* symbols);

  // What these symbols, of the widest alphabet, cost under a table of `magnitudes`. escapes: as
  // below, of what is none of this alphabet's symbols.
  SymbolCost (*cost)(const uint8_t* symbols, int n, const MagnitudeTable& table, int magnitudes,
                     uint32_t* escapes);

  // Several kernels take the block's one table and `choice` = nullptr, or all tables of a shape and
  // in `choice` the index of each element's.

  // Encodes symbols backwards, words from `end` towards lower addresses; returns the new first
  // word. There is room for n + kLanes words, and what lies below the first word may change.
  uint16_t* (*encode)(uint32_t* states, const uint8_t* symbols, int n, const EncodeTable* table,
                      const uint8_t* choice, uint16_t* end);

  // The two above at once, for blocks with one table and without stochastic rounding. An element's
  // bit in escapes (bit i % kLanes of number i / kLanes) says whether its symbol is the escape.
  uint16_t* (*encode_values)(uint32_t* states, const float* x, int n, const Quantizer& q,
                             const MagnitudeTable& table, uint16_t* end, uint32_t* escapes);

  // Decodes n symbols; returns where the first word not used is. At least n + kLanes words are
  // readable: whether they belonged to the piece is the caller's question.
  const uint8_t* (*decode)(uint32_t* states, const DecodeTable* table, const uint8_t* choice, int n,
                           const uint8_t* words, uint8_t* symbols);

  // out[i] = or += step * level[symbol]
  void (*dequantize)(const uint8_t* symbols, int n, const LevelTable* levels, const uint8_t* choice,
                     float step, bool accumulate, float* out);

  // The two above at once, for blocks with one table.
  void (*decode_values)(BlockDecode* block, bool accumulate);
  // The same for two blocks of kBlock elements, which may belong to different pieces.
  void (*decode_pair)(BlockDecode* blocks, bool accumulate);

  // What a block's values decode to: out[i] = step * level of x[i]'s symbol, or x[i] where that is
  // the escape (bits as in encode_values). Blocks with one table, without stochastic rounding; out
  // may be x.
  void (*restore)(const float* x, int n, const Quantizer& q, const LevelTable& levels, float step,
                  float* out, uint32_t* escapes);

  // A block's integers k = high * 2^shift + low - 2^(shift - 1), 0 < shift <= kMaxShift. high is a
  // whole number as a float: under 2^24 in a block that has a code.
  void (*split_low)(const float* x, int n, const Quantizer& q, int shift, float* high,
                    uint32_t* low);
  // out[i] = or += step * k
  void (*join_low)(const float* high, const uint32_t* low, int n, int shift, float step,
                   bool accumulate, float* out);

  // Codes of kind fixed, a byte each: sign and the number of thresholds that |x| * inverse reaches.
  void (*fixed_codes)(const float* x, int n, float inverse, const Codebook& book, uint8_t* codes);
  // out[i] = or += scale * signed_levels[code], of a block's codes as pack() writes them. What lies
  // between them and `end` is readable.
  void (*fixed_values)(const uint8_t* packed, const uint8_t* end, int n, float scale,
                       const Codebook& book, bool accumulate, float* out);
  // Codes to and from `bits` each, least significant first; whole bytes are written.
  void (*pack)(const uint8_t* codes, int n, int bits, uint8_t* out);
  void (*unpack)(const uint8_t* data, int n, int bits, uint8_t* codes);

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
// nullptr where not compiled or not supported by this processor
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();

// Run-time forms of the generated tables, built at first use, thread-safe, never freed.
// The first of the kTablesPerShape tables of a shape.
const EncodeTable* encode_tables(int shape);
const MagnitudeTable* magnitude_tables(int shape);
const DecodeTable* decode_tables(int shape);
const LevelTable* level_tables(int shape, int set);  // of level_set()
// One of them, by its index among all.
inline const EncodeTable& encode_table(int table) {
  return encode_tables(table / tables::kTablesPerShape)[table % tables::kTablesPerShape];
}
inline const MagnitudeTable& magnitude_table(int table) {
  return magnitude_tables(table / tables::kTablesPerShape)[table % tables::kTablesPerShape];
}

// Of the classes, by model.
const EncodeTable& class_encode_table(int model);
const DecodeTable& class_decode_table(int model);

}  // namespace gct
