// Kernels' bodies: headers, raw data, kind fixed, and the copies of coded pieces to their places.
#pragma once

#include "cuda/encode.h"

namespace gct::gpu {

GCT_HD inline WireKind wire_kind(const EncodeBatch& e, const SegmentState& s) {
  return s.as_raw ? WireKind::kRaw : static_cast<WireKind>(e.params.kind);
}

GCT_HD inline uint8_t level_flags(const CodecParams& p) {
  if (p.rounding == Rounding::kStochastic) return kFlagStochastic;
  return p.reconstruction == Reconstruction::kUnitGain ? kFlagUnitGain : 0;
}

// Task: a segment.
struct WriteHeaders {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t i) {
    const BatchSegment& segment = e.segments[i];
    const SegmentState& s = e.states[i];
    uint8_t* out = e.out + segment.out;
    SegmentHeader h;
    h.kind = wire_kind(e, s);
    const bool pieces = h.kind == WireKind::kGG;
    h.flags = pieces ? level_flags(e.params) : 0;
    h.raw_type = raw_type_of(e.dtype);
    h.num_runs = static_cast<uint32_t>(segment.num_runs);
    h.numel = segment.numel;
    h.size_bytes = s.size;
    h.num_pieces = pieces ? static_cast<uint32_t>(s.num_pieces) : 0;
    h.fixed_bits = h.kind == WireKind::kFixed ? static_cast<uint8_t>(e.params.value) : 0;
    warp.leader([&] { write_segment_header(h, out); });
    warp.each([&](int lane) {
      for (int64_t r = lane; r < segment.num_runs; r += kLanes) {
        RunHeader run = e.run_states[segment.first_run + r].header;
        if (s.as_raw) {
          run = RunHeader();
          run.numel = e.runs[segment.first_run + r].numel;
          run.mode = RunMode::kRaw;
        }
        write_run_header(run, out + kSegmentHeaderBytes + kRunHeaderBytes * r);
      }
    });
  }
};

// Task: a tile. Raw data, or scales and codes of kind fixed.
struct WriteTile {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t tile) {
    const TilePlace place = place_tile(e, tile);
    const SegmentState& s = e.states[e.runs[place.run].segment];
    const RunMode mode = e.run_states[place.run].header.mode;
    if (s.as_raw || mode == RunMode::kRaw) {
      write_raw(warp, e, place);
    } else if (mode == RunMode::kCoded && e.params.kind == Kind::kFixed) {
      for (int b = 0; b < place.blocks(); ++b) write_fixed(warp, e, place, b);
    }
  }

 private:
  template <typename Warp>
  GCT_DEVICE static void write_raw(Warp& warp, const EncodeBatch& e, const TilePlace& place) {
    const BatchRun& run = e.runs[place.run];
    const BatchSegment& segment = e.segments[run.segment];
    const SegmentState& s = e.states[run.segment];
    const int width = raw_type_bytes(raw_type_of(e.dtype));
    const int64_t first = place.block * kBlock;
    const int64_t begin = s.as_raw ? header_bytes(segment) + run.begin * width
                                   : s.size - s.raw_numel * width + e.run_states[place.run].raw;
    uint8_t* out = e.out + segment.out + begin + first * width;
    const auto* in = static_cast<const uint8_t*>(e.data) + (run.offset + first) * width;
    warp.each([&](int lane) {
      for (int64_t i = lane; i < place.numel * width; i += kLanes) out[i] = in[i];
    });
  }

  // A lane packs 8 codes, which are `bits` whole bytes.
  template <typename Warp>
  GCT_DEVICE static void write_fixed(Warp& warp, const EncodeBatch& e, const TilePlace& place,
                                     int b) {
    const BatchRun& run = e.runs[place.run];
    const RunState& state = e.run_states[place.run];
    const int n = place.block_numel(b), bits = static_cast<int>(e.params.value);
    const int64_t local = place.block + b, offset = run.offset + local * kBlock;
    uint8_t* out = e.out + e.segments[run.segment].out + state.payload;
    const float mean = e.means[run.first_block + local];
    const uint16_t scale = scale_class(mean) < kMinClass ? 0 : float_to_bfloat16(mean);
    const float inverse = scale == 0 ? 0.0f : 1.0f / bfloat16_to_float(scale);
    const int64_t table = 255 * state.header.code.shape + (1 << (bits - 1)) - 1;
    const float* thresholds = e.tables.fixed_thresholds + table;
    warp.leader([&] { store_le<uint16_t>(out + 2 * local, scale); });
    out += 2 * num_blocks(run.numel) + local * (kBlock / 8) * bits;
    const int bytes = (n * bits + 7) / 8;
    warp.each([&](int lane) {
      uint64_t packed = 0;
      for (int j = 0; j < 8 && 8 * lane + j < n; ++j) {
        const float x = load_float(e.data, e.dtype, offset + 8 * lane + j);
        packed |= static_cast<uint64_t>(fixed_code(x, inverse, thresholds, bits)) << (j * bits);
      }
      for (int j = 0; j < bits && lane * bits + j < bytes; ++j)
        out[lane * bits + j] = static_cast<uint8_t>(packed >> (8 * j));
    });
  }

  // Sign and index of the nearest level; a value on a threshold takes the upper one.
  GCT_DEVICE static uint32_t fixed_code(float x, float inverse, const float* thresholds, int bits) {
    const float magnitude = bits_float(float_bits(x) & 0x7fffffffu) * inverse;
    uint32_t lo = 0, count = (1u << (bits - 1)) - 1;
    while (count > 0) {
      const uint32_t half = count / 2;
      if (magnitude < thresholds[lo + half]) {
        count = half;
      } else {
        lo += half + 1;
        count -= half + 1;
      }
    }
    return ((float_bits(x) >> 31) << (bits - 1)) | lo;
  }
};

// Task: a piece.
struct WritePiece {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t piece) {
    const PiecePlace place = place_piece(e, piece);
    const SegmentState& s = e.states[place.segment];
    if (s.as_raw || place.begin >= place.end) return;
    const BatchSegment& segment = e.segments[place.segment];
    const PieceState& p = e.pieces[piece];
    uint8_t* out = e.out + segment.out;
    uint8_t* entry = out + header_bytes(segment) +
                     static_cast<int64_t>(kPieceEntryBytes) * (piece - segment.first_piece);
    warp.leader([&] {
      store_le<uint32_t>(entry, p.num_words);
      store_le<uint32_t>(entry + 4, p.extra_bytes);
    });
    out += p.at;
    const uint16_t* words = e.words + (piece + 1) * kPieceWords - p.num_words;
    const uint8_t* extra = e.extra + piece * kPieceExtra;
    warp.each([&](int lane) {
      store_le<uint32_t>(out + 4 * lane, p.states[lane]);
      for (int64_t i = lane; i < p.num_words; i += kLanes)
        store_le<uint16_t>(out + kLaneBytes + 2 * i, words[i]);
      for (int64_t i = lane; i < p.extra_bytes; i += kLanes)
        out[kLaneBytes + 2 * int64_t{p.num_words} + i] = extra[i];
    });
  }
};

}  // namespace gct::gpu
