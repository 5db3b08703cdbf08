// What the kernels work on: many segments at once, described by plain structs that lie on the
// device.
//
// A *batch* is the segments of one bucket: its chunks in two shots, the whole in one. Every kernel
// takes the whole batch, so that the number of launches doesn't depend on the number of parameters.
// Work is cut into tasks, each for one warp and independent of the others: results don't depend on
// how many run at a time, nor in which order.
#pragma once

#include "codec.h"
#include "core/coding_tables.h"
#include "core/wire.h"

#if defined(__CUDACC__)
#define GCT_DEVICE __device__
#define GCT_UNROLL _Pragma("unroll")  // loads of several steps are then on their way together
#else
#define GCT_DEVICE
#define GCT_UNROLL
#endif

namespace gct::gpu {

constexpr int kTileBlocks = 32;  // of one run, for one warp: a lane for each
constexpr int64_t kTileNumel = int64_t{kTileBlocks} * kBlock;
constexpr int kPieceBlocks = 1 << kPieceBlocksLog2;
constexpr int kClasses = kMaxClass - kMinClass + 1;

// The run-time tables of csrc/cpu/tables.cpp in the device's memory.
struct CodingTables {
  const EncodeTable* encode;        // [kNumTables]
  const DecodeTable* decode;        // [kNumTables]
  const LevelTable* levels;         // [kLevelSets][kNumTables]
  const EncodeTable* class_encode;  // [kNumClassModels]
  const DecodeTable* class_decode;  // [kNumClassModels]
  const float* fixed_levels;        // as kFixedLevels, in units of mean |x|
  const float* fixed_thresholds;    // between a level and the next one
};

// ---- encoding

// One run of the input; the same for every bucket of a layout.
struct BatchRun {
  int64_t offset = 0;  // of its first element, from the batch's input
  int64_t begin = 0;   // the same from the segment's first element
  int64_t numel = 0;
  uint64_t position = 0;
  int64_t first_block = 0;  // among the batch's
  int64_t first_tile = 0;
  int32_t segment = 0;
  int32_t raw = 0;
};

struct BatchSegment {
  int64_t first_run = 0, num_runs = 0;
  int64_t first_block = 0;
  int64_t first_piece = 0, num_pieces = 0;  // if all runs that aren't raw are coded
  int64_t numel = 0;
  int64_t out = 0, slot = 0;  // where it goes in the batch's output, and its room there
};

// Sums over the blocks of a tile that aren't zero.
struct TileSums {
  double abs;                      // of values
  double shape_abs, shape_square;  // each block divided by the scale of its class
  int64_t class_sum, blocks, numel;
  int32_t lowest, highest;  // class; highest over kMaxClass: not finite
};

struct RunState {
  RunHeader header;
  int64_t first_block;  // in its segment's sequence of coded blocks
  int64_t payload;      // kind fixed: from the segment's begin
  int64_t raw;          // byte in the raw data
  int64_t live_numel;
  int64_t class_cost;  // of its class symbols, in 1/4096 bit
  int32_t lowest, highest;
  float mean_abs;
};

// Elements that the rate model can't tell apart.
struct Group {
  int32_t shape, scale_class;
  double numel;
};

// A step that was tried, and the bytes of symbols that it gave.
struct Trial {
  bool known;
  double log2_step, size;
};

struct SegmentState {
  int64_t coded_blocks, num_pieces, raw_numel, payload_bytes;
  int64_t num_groups;
  double finest, coarsest, center;  // log2 of the step of class 0
  double log2_step;
  double target_bits, aim, overhead;
  Trial fine, coarse;
  int64_t size;
  int32_t attempt;
  int32_t done;     // its symbols are final
  int32_t as_raw;   // coding wouldn't be smaller
  int32_t uncoded;  // a block has no code at this step
};

// A coded block, kept for the backward pass.
struct BlockNote {
  int16_t table;  // -1: zero block, no symbols
  uint16_t numel;
  uint8_t class_symbol, model;
  uint8_t extra;  // it has extra bits
  uint8_t unused;
};

struct PieceState {
  uint32_t states[kLanes];
  uint32_t num_words, extra_bytes;
  int64_t at;        // from the segment's begin
  int32_t overflow;  // its room was too small: it doesn't count as encoded
  int32_t unused;
};

// A piece's room: a word for each symbol and class, and for extra bits the most low bits and six
// more an element. Values that need more are many octaves apart inside one block.
constexpr int64_t kPieceWords = int64_t{kPieceBlocks} * (kBlock + 1);
constexpr int64_t kPieceExtra = int64_t{kPieceBlocks} * kBlock * (kMaxShift + 6) / 8;
constexpr int64_t kPieceSymbols = int64_t{kPieceBlocks} * kBlock;

// Steps that are tried on a sample of blocks, an eighth of an octave apart, and the blocks.
constexpr int kCandidates = 17;
constexpr double kCandidateOctaves = 0.125;
constexpr int kSample = 96;
constexpr int kTableOffsets = 4;  // as in csrc/cpu/rate.cpp

constexpr int kStatistics = 3;

struct EncodeBatch {
  CodecParams params;
  double log2_value;  // of params.value, by the host's library
  DType dtype;
  int64_t num_runs, num_segments, num_tiles, num_blocks, num_pieces;
  int64_t group_slots;  // a segment
  const BatchRun* runs;
  const BatchSegment* segments;
  CodingTables tables;
  const void* data;
  uint8_t* out;
  int64_t out_bytes;
  float* statistics;  // [run][kStatistics]: scale, shape, whether it wasn't finite; or null

  // Scratch. What is counted up lies together, to be zeroed at once.
  uint8_t* counters;
  int64_t counters_bytes;
  TileSums* tiles;
  RunState* run_states;
  SegmentState* states;
  float* means;           // by block
  int16_t* classes;       // by block
  BlockNote* notes;       // by coded block, from the segment's first block on
  int64_t* histogram;     // [segment][group_slots]: elements
  Group* groups;          // [segment][group_slots]
  int64_t* class_counts;  // [run][kClassSymbols]
  int64_t* sample_bits;   // [run][kCandidates][kTableOffsets], in 1/4096 bit
  int64_t* sample_model;  // [segment][kCandidates], the model's bits of the sample, in 1/4096
  PieceState* pieces;
  uint8_t* symbols;  // [piece][kPieceSymbols]
  uint16_t* words;   // [piece][kPieceWords]
  uint8_t* extra;    // [piece][kPieceExtra]
};

// ---- decoding

struct WireSegment {
  int64_t at = 0, size = 0;  // in the batch's input; size may exceed the segment (slot padding)
  int64_t out = 0, numel = 0;
  int64_t first_run = 0, max_runs = 0;      // in the batch's scratch
  int64_t first_block = 0, max_blocks = 0;  // the same; a piece has at least one block
  int64_t first_tile = 0, max_tiles = 0;    // tasks
  int64_t first_task = 0, num_tasks = 0;    // tasks that share its pieces
};

struct WireRun {
  RunHeader header;
  int64_t out;          // first element, from the segment's
  int64_t first_block;  // in the sequence of coded blocks
  int64_t first_tile;
  int64_t payload;  // kinds fixed and raw: byte in the segment
};

struct WireState {
  SegmentHeader header;
  int64_t coded_blocks, num_tiles, payload, raw;
  int32_t status, piece_status;  // of the headers, of the pieces
};

struct DecodeBatch {
  int64_t num_segments, num_tiles, num_tasks;
  const WireSegment* segments;
  CodingTables tables;
  const uint8_t* wire;
  float* out;
  bool accumulate;
  int32_t* statuses;  // [segment]: Status; or null

  WireRun* runs;
  WireState* states;
  int64_t* pieces;   // byte in the segment, from first_block on
  int16_t* classes;  // by coded block
};

GCT_HD inline int count_bits(uint32_t mask) {
#if defined(__CUDA_ARCH__)
  return __popc(mask);
#else
  return __builtin_popcount(mask);
#endif
}

// -1 if no bit is set.
GCT_HD inline int highest_bit(uint32_t mask) {
#if defined(__CUDA_ARCH__)
  return 31 - __clz(static_cast<int>(mask));
#else
  return mask == 0 ? -1 : 31 - __builtin_clz(mask);
#endif
}

// Last entry of first[0, n) that is at most `value`; first[0] <= value.
template <typename T, typename Key>
GCT_HD inline int64_t last_at_most(const T* first, int64_t n, int64_t value, Key key) {
  int64_t lo = 0, hi = n;
  while (hi - lo > 1) {
    const int64_t middle = (lo + hi) / 2;
    if (key(first[middle]) <= value) {
      lo = middle;
    } else {
      hi = middle;
    }
  }
  return lo;
}

}  // namespace gct::gpu
