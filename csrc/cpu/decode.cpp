// From a segment to values. Nothing in a segment is trusted: headers are checked before use, every
// read has an end.
#include <algorithm>
#include <atomic>
#include <limits>

#include "codec.h"
#include "core/convert.h"
#include "cpu/columns.h"
#include "cpu/fixed.h"
#include "cpu/low_rank.h"
#include "cpu/pieces.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

void fill(float value, int64_t numel, bool accumulate, float* out) {
  for (int64_t i = 0; i < numel; ++i) out[i] = accumulate ? out[i] + value : value;
}

void decode_raw_run(const uint8_t* data, RawType type, int64_t numel, bool accumulate, float factor,
                    float* out) {
  for (int64_t i = 0; i < numel; ++i) {
    float value;
    if (type == RawType::kFloat32) {
      value = bits_float(load_le<uint32_t>(data + 4 * i));
    } else {
      const uint16_t h = load_le<uint16_t>(data + 2 * i);
      value = type == RawType::kBFloat16 ? bfloat16_to_float(h) : float16_to_float(h);
    }
    if (factor != 1) value *= factor;  // else a copy, of subnormals and of any NaN, too
    out[i] = accumulate ? out[i] + value : value;
  }
}

// Runs without pieces are decoded at once; the places of the others are collected.
void decode_simple_runs(const uint8_t* wire, const SegmentLayout& layout, const int8_t* profiles,
                        bool accumulate, float factor, float* out, std::vector<RunPlace>* coded) {
  coded->clear();
  const SegmentHeader& h = layout.header;
  const uint8_t* raw = wire + layout.raw_offset;
  const uint8_t* fixed = wire + layout.payload_offset;
  int64_t first_block = 0;
  for (const RunHeader& run : layout.runs) {
    if (run.mode == RunMode::kZero && !accumulate) fill(0.0f, run.numel, false, out);
    if (run.mode == RunMode::kNonFinite)
      fill(std::numeric_limits<float>::quiet_NaN(), run.numel, accumulate, out);
    if (run.mode == RunMode::kRaw) {
      decode_raw_run(raw, h.raw_type, run.numel, accumulate, factor, out);
      raw += run.numel * raw_type_bytes(h.raw_type);
    }
    if (run.mode == RunMode::kCoded && h.kind == WireKind::kFixed) {
      decode_fixed_run(run, h.fixed_bits, fixed, accumulate, factor, out);
      fixed += fixed_run_bytes(run.numel, h.fixed_bits);
    } else if (run.mode == RunMode::kCoded && run.numel > 0) {
      coded->push_back({&run, first_block, out, run.columns > 0 ? profiles : nullptr});
      if (run.columns > 0) profiles += extended_columns(run.columns);
      first_block += num_blocks(run.numel);
    }
    out += run.numel;
  }
}

// Where each piece lies; kBadHeader unless the pieces fill the payload exactly.
Status locate_pieces(const uint8_t* wire, const SegmentLayout& layout,
                     std::vector<PieceInput>* pieces) {
  const SegmentHeader& h = layout.header;
  const uint8_t* entry = wire + layout.payload_offset;
  size_t at = layout.payload_offset + kPieceEntryBytes * size_t{h.num_pieces};
  const size_t lanes = h.kind == WireKind::kGG ? kLaneBytes : 0;
  for (uint32_t i = 0; i < h.num_pieces; ++i, entry += kPieceEntryBytes) {
    PieceInput p;
    p.data = wire + at;
    p.num_words = load_le<uint32_t>(entry);
    p.extra_bytes = load_le<uint32_t>(entry + 4);
    p.begin = static_cast<int64_t>(i) << h.piece_blocks_log2;
    p.end = std::min(p.begin + (int64_t{1} << h.piece_blocks_log2), layout.coded_blocks);
    const size_t size = lanes + 2 * size_t{p.num_words} + p.extra_bytes;
    if (size > layout.raw_offset - at) return Status::kBadHeader;
    at += size;
    pieces->push_back(p);
  }
  return at == layout.raw_offset ? Status::kOk : Status::kBadHeader;
}

void make_room(const SegmentLayout& layout, int64_t threads, std::vector<PieceScratch>* workers) {
  const int64_t most = std::min(int64_t{1} << layout.header.piece_blocks_log2, layout.coded_blocks);
  workers->resize(std::max(workers->size(), static_cast<size_t>(threads)));
  for (int64_t i = 0; i < threads; ++i) {
    for (auto& blocks : (*workers)[static_cast<size_t>(i)].blocks)
      blocks.reserve(static_cast<size_t>(most));
  }
}

Status decode_pieces(const SegmentLayout& layout, const DecodeLease& scratch, bool accumulate,
                     float factor, ThreadPool* pool) {
  const std::vector<RunPlace>& runs = scratch->coded;
  const std::vector<PieceInput>& pieces = scratch->pieces;
  std::atomic<int32_t> failure{static_cast<int32_t>(Status::kOk)};
  const SymbolForm form = {layout.header.levels(), layout.header.trellis(), factor};
  const int64_t count = static_cast<int64_t>(pieces.size());
  const int64_t workers = worker_count(pool);
  // By twos, unless a thread would have nothing to do then.
  const int64_t stride = layout.header.kind == WireKind::kGG && count >= 2 * workers ? 2 : 1;
  const int64_t tasks = div_up(count, stride);
  make_room(layout, tasks > 1 ? workers : 1, &scratch->workers);
  const auto body = [&](int64_t i, int worker) {
    PieceScratch* blocks = &scratch->workers[static_cast<size_t>(worker)];
    const PieceInput* piece = &pieces[static_cast<size_t>(i * stride)];
    Status status;
    if (layout.header.kind == WireKind::kEG) {
      status = decode_piece_eg(runs, *piece, form, accumulate, blocks);
    } else if (stride == 2 && 2 * i + 1 < count) {
      status = decode_two_pieces_gg(runs, piece, form, accumulate, blocks);
    } else {
      status = decode_piece_gg(runs, *piece, form, accumulate, blocks);
    }
    if (status != Status::kOk) failure = static_cast<int32_t>(status);
  };
  parallel_for(pool, tasks, body);
  return static_cast<Status>(failure.load());
}

// Block values and products are summed up before they are multiplied and added to what is there.
Status decode_apart(const uint8_t* wire, size_t size, float* out, int64_t numel, bool accumulate,
                    float factor, Workspace& workspace) {
  std::vector<float>& values = workspace.residuals;
  values.resize(static_cast<size_t>(numel));
  const Status status = decode(wire, size, values.data(), numel, /*accumulate=*/false, workspace);
  if (status != Status::kOk) return status;
  for_each_stretch(numel, workspace.pool, [&](int64_t begin, int64_t n) {
    for (int64_t j = begin; j < begin + n; ++j) {
      const float value = factor * values[static_cast<size_t>(j)];
      out[j] = accumulate ? out[j] + value : value;
    }
  });
  return status;
}

}  // namespace

Status inspect(const uint8_t* wire, size_t size, SegmentInfo* info) {
  if ((wire == nullptr && size > 0) || info == nullptr) return Status::kBadArgument;
  SegmentLayout layout;
  const Status status = read_layout(wire, size, &layout);
  if (status != Status::kOk) return status;
  info->kind = static_cast<Kind>(layout.header.kind);
  info->numel = layout.header.numel;
  info->num_runs = layout.header.num_runs;
  info->size_bytes = layout.header.size_bytes;
  return Status::kOk;
}

Status decode(const uint8_t* wire, size_t size, float* out, int64_t numel, bool accumulate,
              Workspace& workspace, float factor) {
  if (wire == nullptr && size > 0) return Status::kBadArgument;
  if (out == nullptr && numel > 0) return Status::kBadArgument;
  const DecodeLease scratch(&workspace);
  SegmentLayout& layout = scratch->layout;
  Status status = read_layout(wire, size, &layout);
  if (status != Status::kOk) return status;
  if (layout.header.numel != numel) return Status::kSizeMismatch;
  if (layout.header.low_rank() && (accumulate || factor != 1))
    return decode_apart(wire, size, out, numel, accumulate, factor, workspace);
  scratch->pieces.clear();
  scratch->profiles.clear();
  if (has_pieces(layout.header.kind)) {
    status = locate_pieces(wire, layout, &scratch->pieces);
    if (status != Status::kOk) return status;
    BitReader bits(wire + layout.profile_offset, layout.profile_bytes);
    if (!read_profiles(layout.runs, &bits, &scratch->profiles)) return Status::kCorrupt;
  }
  scratch->factors.clear();
  if (layout.header.low_rank()) {
    status = scratch->factors.decode(layout.low_rank, workspace);
    if (status != Status::kOk) return status;
  }
  decode_simple_runs(wire, layout, scratch->profiles.data(), accumulate, factor, out,
                     &scratch->coded);
  status = decode_pieces(layout, scratch, accumulate, factor, workspace.pool);
  if (status == Status::kOk) add_products(scratch->factors, layout.runs, out, workspace.pool);
  return status;
}

}  // namespace gct
