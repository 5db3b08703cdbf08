// The encoder's side of the trellis quantizer: which symbols of a piece, or of a sample of blocks,
// cost least in error plus lambda times bits, lane by lane (Viterbi 1967).
#pragma once

#include <vector>

#include "core/trellis.h"
#include "cpu/kernels.h"

namespace gct {

// What a bit may cost in step^2; that of tools/generate_trellis.py, which the tables are made for.
constexpr float kTrellisLambda = 0.06f;
// Magnitudes that costs are looked up for: two past the largest alphabet.
constexpr int kTrellisCandidates = tables::kMaxMagnitude + 4;
// In the place of an escape's magnitude.
constexpr int kEscapeMagnitude = (kEscapeSymbol + 1) / 2;

// Levels in steps and code lengths in lambda bits of one table and quantizer, by magnitude.
struct TrellisCosts {
  float level[kTrellisCandidates];
  float rate[kTrellisCandidates];
  float escape_rate;  // without what follows it
  float top;          // the alphabet's last magnitude
};

// Of all tables of a shape, by trellis_table(). Built at first use, as those of kernels.h.
const EncodeTable* trellis_encode_tables(int shape);
const DecodeTable* trellis_decode_tables(int shape);
const LevelTable* trellis_level_tables(int shape);
const TrellisCosts* trellis_cost_tables(int shape);

// Costs at a ratio between those of two tables, as deadzone_at(): the rate must not jump where the
// table changes. Levels and alphabets stay each table's own.
class TrellisPrices {
 public:
  // Of all tables of the shape; origin: how far, in 1/16 octave, the block's ratio lies above that
  // of its table.
  const TrellisCosts* at(int shape, double origin);

  void reserve() { costs_.reserve(kTrellisTablesPerShape); }
  size_t capacity_bytes() const { return costs_.capacity() * sizeof(TrellisCosts); }

 private:
  int shape_ = -1;
  double origin_ = 0;
  std::vector<TrellisCosts> costs_;
};

// What the way back through the trellis needs of one element on each lane.
struct TrellisRow {
  uint32_t magnitudes[kLanes];  // the best of each branch, 8 bits at 8 * (2 * quantizer + parity)
  uint8_t second[kLanes];       // bit s: state s is reached best from its second predecessor
  uint8_t negative[kLanes];
};

// By state and lane.
using TrellisTotals = float[kTrellisStates][kLanes];

// As in kernels.h: all implementations return the same bits. `choice` is the plain table of each
// element among its shape's.
struct TrellisKernels {
  // Adds the elements of a block to the ways that end in each state; one row each 32 elements.
  void (*forward)(const float* x, int n, float inverse_step, const TrellisCosts* costs,
                  const uint8_t* choice, TrellisTotals totals, TrellisRow* rows);
  // From the states after a block to those before it: symbols and quantizers of its elements.
  void (*backward)(const TrellisRow* rows, int n, int32_t* states, uint8_t* symbols,
                   uint8_t* quantizers);
  // Kernels::decode with the trellis' states; used: trellis_table() of each element.
  const uint8_t* (*decode)(uint32_t* lanes, uint8_t* states, const DecodeTable* tables,
                           const uint8_t* choice, int n, const uint8_t* words, uint8_t* symbols,
                           uint8_t* used);
};

const TrellisKernels& trellis_kernels();  // of the implementation in use
const TrellisKernels* scalar_trellis();
const TrellisKernels* avx512_trellis();  // nullptr where not compiled

// An element past the alphabet: magnitude of its escape, and the prices of both parities.
int32_t trellis_escape(float steps, const TrellisCosts& costs);
struct LargePrices {
  float price[2];  // by parity
  int32_t magnitude[2];
};
LargePrices price_large(float steps, const TrellisCosts& costs, int table_in_shape);

// The way of one piece or sample.
class TrellisPath {
 public:
  // free_start: from any state, for a sample; else from state 0, where decoders begin.
  void begin(bool free_start);
  // The next block; its symbols go to place * kBlock.
  void add(const float* x, int n, float inverse_step, const TrellisCosts* costs,
           const uint8_t* choice, size_t place);
  // Symbols and trellis_table()s of all blocks added since begin().
  void finish(uint8_t* symbols, uint8_t* used);

  void reserve(size_t blocks);
  size_t capacity_bytes() const;

 private:
  struct Block {
    int n;
    size_t place, first_row;
    uint8_t choice[kBlock];
  };

  TrellisTotals totals_;
  std::vector<TrellisRow> rows_;
  std::vector<Block> blocks_;
  size_t num_rows_ = 0;
};

// A thread's memory for the pieces that it encodes: room for the largest, so that none is taken.
struct TrellisScratch {
  TrellisPrices prices;
  TrellisPath path;

  void reserve(size_t blocks) {
    prices.reserve();
    path.reserve(blocks);
  }
  size_t capacity_bytes() const { return prices.capacity_bytes() + path.capacity_bytes(); }
};

}  // namespace gct
