// The segment: fields, offsets and checks. docs/wire-format.md is the same in words; change both or
// neither.
//
//   segment header | run headers | column profiles | low-rank parts | piece table | pieces
//   | raw data                                                               (kinds gg and eg)
//   segment header | run headers | block scales and codes, run by run | raw data  (kind fixed)
//   segment header | run headers | raw data                                  (kind raw)
#pragma once

#include <vector>

#include "core/gg_tables.h"
#include "core/low_rank.h"
#include "core/quantize.h"
#include "core/trellis.h"

namespace gct {

constexpr uint32_t kMagic = 0x31544347u;  // "GCT1" in memory order
constexpr uint8_t kWireVersion = 1;
constexpr uint8_t kTrellisVersion = 2;   // of segments with kFlagTrellis, and of no others
constexpr uint8_t kUnitGainVersion = 3;  // of segments with kFlagUnitGain, and of no others
constexpr size_t kSegmentHeaderBytes = 40;
constexpr size_t kRunHeaderBytes = 24;
constexpr size_t kPieceEntryBytes = 8;  // u32 number of rANS words, u32 bytes of extra bits
constexpr size_t kLaneBytes = 4 * kLanes;
constexpr int kPieceBlocksLog2 = 8;  // what this encoder writes: 64 Ki elements a piece
constexpr int kMaxPieceBlocksLog2 = 16;
constexpr uint8_t kFlagStochastic = 1;
constexpr uint8_t kFlagLowRank = 2;   // kinds gg and eg: there is a section of low-rank parts
constexpr uint8_t kFlagTrellis = 4;   // kind gg: symbols of the trellis quantizer
constexpr uint8_t kFlagUnitGain = 8;  // kinds gg and eg: levels of unit gain
constexpr int64_t kMaxNumel = int64_t{1} << 48;

enum class WireKind : uint8_t { kRaw = 0, kGG = 1, kEG = 2, kFixed = 3 };
enum class RawType : uint8_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
enum class RunMode : uint8_t {
  kZero = 0,       // every element is zero; no payload
  kNonFinite = 1,  // held a NaN or an infinity: decodes to NaN everywhere; no payload
  kRaw = 2,
  kCoded = 3,
};

struct SegmentHeader {
  WireKind kind = WireKind::kRaw;
  uint8_t flags = 0;
  RawType raw_type = RawType::kFloat32;
  uint32_t num_runs = 0;
  int64_t numel = 0;
  int64_t size_bytes = 0;
  uint32_t num_pieces = 0;
  uint8_t piece_blocks_log2 = kPieceBlocksLog2;
  uint8_t fixed_bits = 0;

  GCT_HD bool stochastic() const { return (flags & kFlagStochastic) != 0; }
  GCT_HD bool low_rank() const { return (flags & kFlagLowRank) != 0; }
  GCT_HD bool trellis() const { return (flags & kFlagTrellis) != 0; }
  GCT_HD Levels levels() const {
    if (stochastic()) return Levels::kIntegers;
    return (flags & kFlagUnitGain) != 0 ? Levels::kUnitGain : Levels::kCentroids;
  }
};

struct RunHeader {
  int64_t numel = 0;
  RunCode code;
  int16_t base_class = 0;  // predicts the run's first block, and the first of each piece
  RunMode mode = RunMode::kZero;
  uint8_t model = 0;     // gg: class model; else 0
  uint32_t columns = 0;  // length of the run's column profile; 0: none
};

GCT_HD inline bool has_pieces(WireKind kind) {
  return kind == WireKind::kGG || kind == WireKind::kEG;
}

GCT_HD inline int raw_type_bytes(RawType type) { return type == RawType::kFloat32 ? 4 : 2; }
// What raw data of an input are sent as: float64 as float32.
GCT_HD inline RawType raw_type_of(DType dtype) {
  if (dtype == DType::kBFloat16) return RawType::kBFloat16;
  return dtype == DType::kFloat16 ? RawType::kFloat16 : RawType::kFloat32;
}

GCT_HD inline int64_t num_blocks(int64_t numel) { return div_up(numel, kBlock); }

// The version is that of the flag that came with it.
GCT_HD inline uint8_t version_of(uint8_t flags) {
  if ((flags & kFlagTrellis) != 0) return kTrellisVersion;
  return (flags & kFlagUnitGain) != 0 ? kUnitGainVersion : kWireVersion;
}

GCT_HD inline uint32_t table_id_of(uint8_t version) {
  if (version == kTrellisVersion) return tables::kTrellisTableId;
  return version == kUnitGainVersion ? tables::kGainTableId : tables::kTableId;
}

// What a segment of this version and kind may have set.
GCT_HD inline uint8_t flags_of(uint8_t version, WireKind kind) {
  if (version == kTrellisVersion) return kind == WireKind::kGG ? kFlagTrellis | kFlagLowRank : 0;
  if (!has_pieces(kind)) return version == kWireVersion ? kFlagStochastic : 0;
  return kFlagLowRank | (version == kWireVersion ? kFlagStochastic : kFlagUnitGain);
}

GCT_HD inline void write_segment_header(const SegmentHeader& h, uint8_t* p) {
  store_le<uint32_t>(p, kMagic);
  p[4] = version_of(h.flags);
  p[5] = static_cast<uint8_t>(h.kind);
  p[6] = h.flags;
  p[7] = static_cast<uint8_t>(h.raw_type);
  store_le<uint32_t>(p + 8, table_id_of(p[4]));
  store_le<uint32_t>(p + 12, h.num_runs);
  store_le<uint64_t>(p + 16, static_cast<uint64_t>(h.numel));
  store_le<uint64_t>(p + 24, static_cast<uint64_t>(h.size_bytes));
  store_le<uint32_t>(p + 32, h.num_pieces);
  p[36] = h.piece_blocks_log2;
  p[37] = h.fixed_bits;
  store_le<uint16_t>(p + 38, 0);
}

GCT_HD inline void write_run_header(const RunHeader& h, uint8_t* p) {
  store_le<uint64_t>(p, static_cast<uint64_t>(h.numel));
  store_le<uint32_t>(p + 8, float_bits(h.code.step));
  store_le<uint16_t>(p + 12, static_cast<uint16_t>(h.code.log2_ratio));
  store_le<uint16_t>(p + 14, static_cast<uint16_t>(h.base_class));
  p[16] = static_cast<uint8_t>(h.mode);
  p[17] = h.code.shape;
  p[18] = h.code.allocation8;
  p[19] = h.model;
  store_le<uint32_t>(p + 20, h.columns);
}

// Reads the segment header alone. size is what the caller holds; it may exceed the segment (slot
// padding).
GCT_HD inline Status read_segment_header(const uint8_t* p, size_t size, SegmentHeader* h) {
  if (size >= sizeof kMagic && load_le<uint32_t>(p) != kMagic) return Status::kBadMagic;
  if (size < kSegmentHeaderBytes) return Status::kTruncated;
  if (p[4] < kWireVersion || p[4] > kUnitGainVersion) return Status::kBadVersion;
  if (load_le<uint32_t>(p + 8) != table_id_of(p[4])) return Status::kBadTables;
  const uint64_t numel = load_le<uint64_t>(p + 16);
  const uint64_t size_bytes = load_le<uint64_t>(p + 24);
  h->kind = static_cast<WireKind>(p[5]);
  h->flags = p[6];
  h->raw_type = static_cast<RawType>(p[7]);
  h->num_runs = load_le<uint32_t>(p + 12);
  h->num_pieces = load_le<uint32_t>(p + 32);
  h->piece_blocks_log2 = p[36];
  h->fixed_bits = p[37];
  const bool fixed = h->kind == WireKind::kFixed;
  if (version_of(p[6]) != p[4] || (p[6] & ~flags_of(p[4], h->kind)) != 0) return Status::kBadHeader;
  if (p[5] > 3 || p[7] > 2 || p[38] != 0 || p[39] != 0) return Status::kBadHeader;
  if (h->piece_blocks_log2 > kMaxPieceBlocksLog2) return Status::kBadHeader;
  if (fixed ? h->fixed_bits < 1 || h->fixed_bits > 8 : h->fixed_bits != 0)
    return Status::kBadHeader;
  if (numel > static_cast<uint64_t>(kMaxNumel)) return Status::kBadHeader;
  if (size_bytes > size) return Status::kTruncated;
  h->numel = static_cast<int64_t>(numel);
  h->size_bytes = static_cast<int64_t>(size_bytes);
  const uint64_t headers = kSegmentHeaderBytes + uint64_t{kRunHeaderBytes} * h->num_runs;
  return headers > size_bytes ? Status::kBadHeader : Status::kOk;
}

GCT_HD inline Status read_run_header(const uint8_t* p, WireKind kind, RunHeader* h) {
  const uint64_t numel = load_le<uint64_t>(p);
  h->code.step = bits_float(load_le<uint32_t>(p + 8));
  h->code.log2_ratio = static_cast<int16_t>(load_le<uint16_t>(p + 12));
  h->code.step_ratio = static_cast<int16_t>(step_ratio(h->code.step));
  h->base_class = static_cast<int16_t>(load_le<uint16_t>(p + 14));
  h->mode = static_cast<RunMode>(p[16]);
  h->code.shape = p[17];
  h->code.allocation8 = p[18];
  h->model = p[19];
  h->columns = load_le<uint32_t>(p + 20);
  if (numel > static_cast<uint64_t>(kMaxNumel) || p[16] > 3) return Status::kBadHeader;
  h->numel = static_cast<int64_t>(numel);
  const bool profiled = h->mode == RunMode::kCoded && has_pieces(kind);
  if (h->columns > (profiled ? kMaxColumns : 0) || h->columns > numel) return Status::kBadHeader;
  if (h->mode != RunMode::kCoded) return Status::kOk;
  if (kind == WireKind::kRaw || h->code.shape >= tables::kNumShapes) return Status::kBadHeader;
  if (kind == WireKind::kFixed) return Status::kOk;
  const bool step_ok = h->code.step > 0 && float_bits(h->code.step) < 0x7f800000u;  // finite
  const int models = kind == WireKind::kGG ? tables::kNumClassModels : 1;
  const bool class_ok = h->base_class >= kMinClass && h->base_class <= kMaxClass;
  return step_ok && class_ok && h->code.allocation8 <= 8 && h->model < models ? Status::kOk
                                                                              : Status::kBadHeader;
}

// Bytes of one coded run of kind fixed: a bfloat16 scale a block, then the codes, each block from a
// byte boundary.
GCT_HD inline int64_t fixed_run_bytes(int64_t numel, int bits) {
  const int64_t full = numel / kBlock;
  return 2 * num_blocks(numel) + full * (kBlock / 8) * bits + div_up((numel % kBlock) * bits, 8);
}

// A checked segment: all headers, and where its parts lie.
struct SegmentLayout {
  SegmentHeader header;
  std::vector<RunHeader> runs;
  int64_t coded_blocks = 0;
  int64_t raw_numel = 0;
  int64_t profile_columns = 0;  // of all runs together
  size_t profile_offset = 0;    // the profiles' bits
  size_t profile_bytes = 0;
  LowRankSection low_rank;
  size_t payload_offset = 0;  // piece table, or block scales and codes
  size_t raw_offset = 0;
};

inline Status read_low_rank(const uint8_t* wire, SegmentLayout* layout) {
  const auto coded_numel = [&](uint32_t i) {
    const RunMode mode = i < layout->runs.size() ? layout->runs[i].mode : RunMode::kRaw;
    return mode == RunMode::kCoded || mode == RunMode::kZero ? layout->runs[i].numel : 0;
  };
  const size_t end = static_cast<size_t>(layout->header.size_bytes);
  if (layout->payload_offset > end) return Status::kBadHeader;
  if (!read_low_rank_section(wire + layout->payload_offset, end - layout->payload_offset,
                             coded_numel, &layout->low_rank))
    return Status::kBadHeader;
  layout->payload_offset += layout->low_rank.bytes;
  return Status::kOk;
}

inline Status read_layout(const uint8_t* wire, size_t size, SegmentLayout* layout) {
  SegmentHeader& h = layout->header;
  Status status = read_segment_header(wire, size, &h);
  if (status != Status::kOk) return status;
  layout->runs.resize(h.num_runs);
  layout->coded_blocks = layout->raw_numel = layout->profile_columns = 0;
  layout->profile_bytes = 0;
  layout->payload_offset = kSegmentHeaderBytes + kRunHeaderBytes * h.num_runs;
  int64_t numel = 0, fixed_bytes = 0;
  for (uint32_t i = 0; i < h.num_runs; ++i) {
    RunHeader& run = layout->runs[i];
    status = read_run_header(wire + kSegmentHeaderBytes + kRunHeaderBytes * i, h.kind, &run);
    if (status != Status::kOk) return status;
    numel += run.numel;
    if (numel > h.numel) return Status::kBadHeader;
    if (run.mode == RunMode::kRaw) layout->raw_numel += run.numel;
    if (run.mode == RunMode::kCoded) {
      layout->coded_blocks += num_blocks(run.numel);
      layout->profile_columns += run.columns;
      fixed_bytes += fixed_run_bytes(run.numel, h.fixed_bits);
    }
  }
  if (numel != h.numel) return Status::kBadHeader;
  const bool pieces = has_pieces(h.kind);
  if (layout->profile_columns > 0) {
    const int64_t left = h.size_bytes - static_cast<int64_t>(layout->payload_offset) - 4;
    if (left < 0) return Status::kBadHeader;
    layout->profile_offset = layout->payload_offset + 4;
    layout->profile_bytes = load_le<uint32_t>(wire + layout->payload_offset);
    // Every column takes a bit at least.
    if (static_cast<int64_t>(layout->profile_bytes) > left ||
        layout->profile_columns > 8 * static_cast<int64_t>(layout->profile_bytes))
      return Status::kBadHeader;
    layout->payload_offset = layout->profile_offset + layout->profile_bytes;
  }
  layout->low_rank.clear();
  if (h.low_rank()) {
    status = read_low_rank(wire, layout);
    if (status != Status::kOk) return status;
  }
  const int64_t expected =
      pieces ? div_up(layout->coded_blocks, int64_t{1} << h.piece_blocks_log2) : 0;
  if (expected != h.num_pieces) return Status::kBadHeader;
  const int64_t raw_bytes = layout->raw_numel * raw_type_bytes(h.raw_type);
  const int64_t payload =
      h.kind == WireKind::kFixed ? fixed_bytes : int64_t{kPieceEntryBytes} * h.num_pieces;
  const int64_t rest =
      h.size_bytes - static_cast<int64_t>(layout->payload_offset) - payload - raw_bytes;
  if (rest < 0 || (!pieces && rest != 0)) return Status::kBadHeader;
  layout->raw_offset = static_cast<size_t>(h.size_bytes - raw_bytes);
  return Status::kOk;
}

}  // namespace gct
