// Pieces: stretches of blocks that are coded independently of each other, so that threads and warps
// can share them.
#pragma once

#include <vector>

#include "cpu/analyze.h"
#include "cpu/trellis.h"

namespace gct {

// One encoded piece: extra bits and, for gg, lane states followed by words.
struct PieceOutput {
  std::vector<uint16_t> words;  // filled from the end
  size_t first_word = 0;
  uint32_t states[kLanes];
  std::vector<uint8_t> extra;
  std::vector<uint8_t> symbols;
  // Of each element of blocks in runs with a column profile, and of all that the trellis codes.
  std::vector<uint8_t> tables;
  TrellisPrices prices;
  TrellisPath path;
  double model_bits = 0;

  uint32_t num_words() const { return static_cast<uint32_t>(words.size() - first_word); }
};

// Bits that the classes take as they are.
double class_bits(EncodePlan* plan);

// Sets blocks whose symbols would all be zero to kZeroClass, then the class model of each run.
void prepare_classes(EncodePlan* plan);

void encode_piece_gg(const EncodePlan& plan, int64_t begin, int64_t end, bool want_model_bits,
                     PieceOutput* out);
void encode_piece_eg(const EncodePlan& plan, int64_t begin, int64_t end, PieceOutput* out);

// A piece's place in a segment being decoded; out is the whole segment's output.
struct PieceInput {
  const uint8_t* data = nullptr;  // lane states, words, extra bits
  uint32_t num_words = 0;
  uint32_t extra_bytes = 0;
  int64_t begin = 0, end = 0;  // blocks
};

// Where a coded run's elements go and where its blocks stand in the sequence of coded blocks.
struct RunPlace {
  const RunHeader* header;
  int64_t first_block;
  float* out;
  const int8_t* profile;  // column offsets extended by a block, or nullptr
};

Status decode_piece_gg(const std::vector<RunPlace>& runs, const PieceInput& piece, bool stochastic,
                       bool trellis, bool accumulate);
Status decode_piece_eg(const std::vector<RunPlace>& runs, const PieceInput& piece, bool stochastic,
                       bool accumulate);

}  // namespace gct
