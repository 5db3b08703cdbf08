// Pieces: stretches of blocks that are coded independently of each other, so that threads and warps
// can share them.
#pragma once

#include <vector>

#include "cpu/analyze.h"
#include "cpu/trellis.h"

namespace gct {

// A block of the piece being encoded.
struct CodedBlock {
  size_t run = 0;
  int64_t local = 0;  // in its run
  int n = 0;
  int table = -1;  // its own, or the first of its shape's if choice is set; -1: no symbols
  float inverse_step = 0, bias = 0;  // for the way by values
  int shift = 0;                     // low bits aside, too
  bool choice = false;               // its elements' tables stand in PieceOutput::tables
  bool trellis = false;
  uint8_t class_symbol = 0;
  uint8_t model = 0;
};

// What the blocks of one class in a run have in common.
struct ClassCoder {
  int64_t run = -1;
  float inverse_step = 0, bias = 0;
  int shift = 0;
  int table = -1;
};

// One encoded piece: extra bits and, for gg, lane states followed by words.
struct PieceOutput {
  std::vector<uint16_t> words;  // filled from the end
  size_t first_word = 0;
  uint32_t states[kLanes];
  std::vector<uint8_t> extra;
  // Scratch of the way there: symbols and tables only where elements have tables of their own.
  std::vector<CodedBlock> blocks;
  std::vector<ClassCoder> coders;  // by class
  std::vector<uint32_t> escapes;   // kBlock / kLanes a block
  std::vector<uint8_t> symbols;
  // Of each element of blocks in runs with a column profile, and of all that the trellis codes.
  std::vector<uint8_t> tables;
  double model_bits = 0;
  bool ready = false;  // to be placed in the segment

  uint32_t num_words() const { return static_cast<uint32_t>(words.size() - first_word); }
};

// trellis: the thread's, used with high effort alone.
void encode_piece_gg(const EncodePlan& plan, int64_t begin, int64_t end, bool want_model_bits,
                     TrellisScratch* trellis, PieceOutput* out);
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

// A block of a piece being decoded.
struct DecodedBlock {
  const RunHeader* run = nullptr;
  float* out = nullptr;
  int n = 0;
  bool zero = true;
  BlockCode code;
  const int8_t* offsets = nullptr;  // of its columns, where it has a profile
};

// A thread's memory for the blocks of two pieces: room for all there are, so that none is taken.
struct PieceScratch {
  std::vector<DecodedBlock> blocks[2];
};

// What a segment's symbols stand for.
struct SymbolForm {
  Levels levels = Levels::kCentroids;
  bool trellis = false;
  float factor = 1;  // of steps: as decode() takes it
};

Status decode_piece_gg(const std::vector<RunPlace>& runs, const PieceInput& piece, SymbolForm form,
                       bool accumulate, PieceScratch* scratch);
// Two pieces at once, block by block: one's look-ups run while the other's wait.
Status decode_two_pieces_gg(const std::vector<RunPlace>& runs, const PieceInput* pieces,
                            SymbolForm form, bool accumulate, PieceScratch* scratch);
Status decode_piece_eg(const std::vector<RunPlace>& runs, const PieceInput& piece, SymbolForm form,
                       bool accumulate, PieceScratch* scratch);

}  // namespace gct
