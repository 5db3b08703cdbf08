#include "cpu/segment_sizes.h"

#include <algorithm>

namespace gct {

size_t max_segment_bytes(const CodecParams& params, const EncodeInput& input) {
  return static_cast<size_t>(SegmentSizes(params, input).all_raw());
}

size_t slot_bytes(const CodecParams& params, const EncodeInput& input) {
  const SegmentSizes sizes(params, input);
  int64_t slot = sizes.all_raw();
  if (params.kind == Kind::kFixed) {
    slot = std::min(slot, sizes.fixed(input, static_cast<int>(params.value)));
  } else if (params.kind != Kind::kRaw && params.target == Target::kBits) {
    const double target = params.value * static_cast<double>(sizes.numel) / 8;
    const int64_t pieces = div_up(sizes.coded_blocks, int64_t{1} << kPieceBlocksLog2);
    const int64_t overhead =
        sizes.headers + sizes.raw_numel * sizes.raw_bytes + pieces * kPieceOverheadBytes;
    const double coded = params.value * static_cast<double>(sizes.numel - sizes.raw_numel) / 8;
    // Exempt runs and headers come out of the target, but never more than a quarter of the coded
    // runs' share.
    const double wanted = std::max(target, static_cast<double>(overhead) + 0.75 * coded);
    if (wanted < static_cast<double>(slot)) slot = static_cast<int64_t>(wanted);
  }
  return static_cast<size_t>(slot);
}

}  // namespace gct
