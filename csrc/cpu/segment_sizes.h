// How large a segment of an input can become.
#pragma once

#include "codec.h"
#include "core/wire.h"
#include "cpu/fixed.h"

namespace gct {

// Beyond symbols: lane states, table entry, and the classes of an all-zero piece.
constexpr int64_t kPieceOverheadBytes = kLaneBytes + kPieceEntryBytes + 16;

struct SegmentSizes {
  int64_t numel = 0, raw_numel = 0, coded_numel = 0, coded_blocks = 0, headers = 0;
  int raw_bytes = 4;

  SegmentSizes(const CodecParams& params, const EncodeInput& input) {
    for (int64_t i = 0; i < input.num_runs; ++i) {
      const Run& run = input.runs[i];
      numel += run.numel;
      if (run.raw || params.kind == Kind::kRaw) {
        raw_numel += run.numel;
      } else {
        coded_numel += run.numel;
        coded_blocks += num_blocks(run.numel);
      }
    }
    headers = static_cast<int64_t>(kSegmentHeaderBytes +
                                   kRunHeaderBytes * static_cast<size_t>(input.num_runs));
    raw_bytes = raw_type_bytes(raw_type_of(input.dtype));
  }

  int64_t all_raw() const { return headers + numel * raw_bytes; }
  int64_t fixed(const EncodeInput& input, int bits) const {
    int64_t total = headers;
    for (int64_t i = 0; i < input.num_runs; ++i) {
      const Run& run = input.runs[i];
      total += run.raw ? run.numel * raw_bytes : fixed_run_bytes(run.numel, bits);
    }
    return total;
  }
};

}  // namespace gct
