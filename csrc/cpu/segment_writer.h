// From an encoder's plan to a segment's bytes: headers, sections, pieces, raw data.
#pragma once

#include <vector>

#include "cpu/pieces.h"
#include "cpu/segment_sizes.h"

namespace gct {

class SegmentWriter {
 public:
  // Writes the workspace's plan: of `input`, or of what is left of it beside low-rank parts. The
  // effort may change between two calls. stats may be nullptr. All outlive the writer.
  SegmentWriter(const CodecParams& params, const EncodeInput& input, const SegmentSizes& sizes,
                Workspace* ws, EncodeStats* stats, uint8_t* out, size_t capacity);

  // What stands between run headers and piece table: the plan's column profiles, then low-rank
  // parts (nullptr: none). Before the first write_pieces().
  void make_sections(const std::vector<uint8_t>* low_rank_parts);
  void drop_sections();
  size_t sections_bytes() const { return sections_.size(); }
  int64_t num_pieces() const;

  // All runs as raw data; makes the plan that of a raw segment.
  Status write_all_raw(size_t* written);
  // Kind fixed; as raw data where that is less.
  Status write_fixed(size_t* written);
  // Kinds gg and eg: all pieces with the plan's step. kTooSmall if the segment exceeds `limit`.
  Status write_pieces(size_t limit, size_t* written);
  // What the last write_pieces() came to, also where that exceeded its limit.
  size_t total_size() const { return total_size_; }

 private:
  // Where the next piece goes.
  struct PiecePlace {
    uint8_t* entry;  // in the piece table
    size_t at;       // of its data in the segment
    size_t behind;   // bytes that come after the pieces
    size_t limit;    // of the segment
  };

  SegmentHeader segment_header(WireKind kind, size_t size) const;
  void write_headers(const SegmentHeader& header);
  void write_raw_runs(size_t end);
  void place_piece(const PieceOutput& piece, PiecePlace* place);
  void encode_pieces(int64_t count, PiecePlace* place);
  void encode_piece(int64_t i, TrellisScratch* trellis, PieceOutput* out) const;
  TrellisScratch* trellis_scratch();
  size_t piece_bytes(const PieceOutput& piece) const;
  void copy_piece(const PieceOutput& piece, uint8_t* entry, uint8_t* p) const;

  const CodecParams& params_;
  const EncodeInput& input_;
  const SegmentSizes& sizes_;
  Workspace& ws_;
  EncodePlan& plan_;
  EncodeStats* stats_;
  uint8_t* out_;
  size_t capacity_;
  std::vector<uint8_t>& sections_;
  bool low_rank_ = false;
  size_t total_size_ = 0;
};

}  // namespace gct
