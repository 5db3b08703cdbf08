// Kernels' bodies: a segment's headers, and where its parts lie. Nothing in it is trusted: headers
// are checked before use, every read has an end.
#pragma once

#include "cuda/batch.h"

namespace gct::gpu {

// Task: a segment. Checks all headers and finds where each run's and piece's bytes lie.
template <typename Warp>
class WireParser {
 public:
  GCT_DEVICE WireParser(Warp& warp, const DecodeBatch& batch, int64_t segment)
      : warp_(warp),
        d_(batch),
        segment_(batch.segments[segment]),
        wire_(batch.wire + segment_.at) {}

  GCT_DEVICE WireState run() {
    state_.status = static_cast<int32_t>(parse());
    return state_;
  }

 private:
  using Counts = typename Warp::template Lanes<int64_t>;
  using Flags = typename Warp::template Lanes<bool>;

  GCT_DEVICE Status parse() {
    SegmentHeader& h = state_.header;
    const Status status = read_segment_header(wire_, static_cast<size_t>(segment_.size), &h);
    if (status != Status::kOk) return status;
    if (h.numel != segment_.numel || h.num_runs > segment_.max_runs) return Status::kSizeMismatch;
    if (h.kind == WireKind::kEG || h.low_rank() || h.trellis()) return Status::kUnsupported;
    const Status runs = parse_runs();
    if (runs != Status::kOk) return runs;
    const bool pieces = has_pieces(h.kind);
    const int64_t table =
        static_cast<int64_t>(kSegmentHeaderBytes + kRunHeaderBytes * size_t{h.num_runs});
    const int64_t raw_bytes = raw_numel_ * raw_type_bytes(h.raw_type);
    const int64_t expected =
        pieces ? div_up(state_.coded_blocks, int64_t{1} << h.piece_blocks_log2) : 0;
    if (expected != h.num_pieces) return Status::kBadHeader;
    const int64_t entries = static_cast<int64_t>(kPieceEntryBytes) * h.num_pieces;
    const int64_t rest = h.size_bytes - table - (pieces ? entries : fixed_bytes_) - raw_bytes;
    if (rest < 0 || (!pieces && rest != 0)) return Status::kBadHeader;
    state_.payload = table;
    state_.raw = h.size_bytes - raw_bytes;
    place_payloads(table);
    return pieces ? locate_pieces(table, table + entries) : Status::kOk;
  }

  // A run's header, or an empty one past the last; false if it breaks a rule.
  GCT_DEVICE bool read_run(int64_t r, RunHeader* run) {
    if (r >= state_.header.num_runs) return true;
    return read_run_header(wire_ + kSegmentHeaderBytes + kRunHeaderBytes * r, state_.header.kind,
                           run) == Status::kOk;
  }

  GCT_DEVICE Status parse_runs() {
    const SegmentHeader& h = state_.header;
    int64_t numel = 0;
    for (int64_t base = 0; base < h.num_runs; base += kLanes) {
      Counts out, blocks, tiles, raw, fixed;
      Flags bad, profiled;
      typename Warp::template Lanes<RunHeader> run;
      warp_.each([&](int lane) {
        bad[lane] = !read_run(base + lane, &run[lane]);
        if (bad[lane]) return;
        const bool coded = run[lane].mode == RunMode::kCoded;
        profiled[lane] = run[lane].columns > 0;
        out[lane] = run[lane].numel;
        blocks[lane] = coded ? num_blocks(run[lane].numel) : 0;
        tiles[lane] = div_up(run[lane].numel, kTileNumel);
        raw[lane] = run[lane].mode == RunMode::kRaw ? run[lane].numel : 0;
        fixed[lane] = coded && h.kind == WireKind::kFixed
                          ? fixed_run_bytes(run[lane].numel, h.fixed_bits)
                          : 0;
      });
      if (warp_.ballot(bad) != 0) return Status::kBadHeader;
      const int64_t more = warp_.scan(&out), more_blocks = warp_.scan(&blocks),
                    more_tiles = warp_.scan(&tiles), more_raw = warp_.scan(&raw),
                    more_fixed = warp_.scan(&fixed);
      if (numel + more > h.numel) return Status::kBadHeader;
      if (warp_.ballot(profiled) != 0) return Status::kUnsupported;
      warp_.each([&](int lane) {
        if (base + lane >= h.num_runs) return;
        const int64_t payload = run[lane].mode == RunMode::kRaw
                                    ? (raw_numel_ + raw[lane]) * raw_type_bytes(h.raw_type)
                                    : fixed_bytes_ + fixed[lane];
        d_.runs[segment_.first_run + base + lane] = {run[lane], numel + out[lane],
                                                     state_.coded_blocks + blocks[lane],
                                                     state_.num_tiles + tiles[lane], payload};
      });
      numel += more;
      state_.coded_blocks += more_blocks;
      state_.num_tiles += more_tiles;
      raw_numel_ += more_raw;
      fixed_bytes_ += more_fixed;
    }
    return numel == h.numel ? Status::kOk : Status::kBadHeader;
  }

  // Makes payloads count from the segment's begin, now that it is known where raw data begin.
  GCT_DEVICE void place_payloads(int64_t table) {
    warp_.sync();
    warp_.each([&](int lane) {
      for (int64_t r = lane; r < state_.header.num_runs; r += kLanes) {
        WireRun& run = d_.runs[segment_.first_run + r];
        run.payload += run.header.mode == RunMode::kRaw ? state_.raw : table;
      }
    });
  }

  // kBadHeader unless the pieces fill the payload exactly.
  GCT_DEVICE Status locate_pieces(int64_t table, int64_t at) {
    const int64_t count = state_.header.num_pieces;
    for (int64_t base = 0; base < count; base += kLanes) {
      Counts bytes;
      warp_.each([&](int lane) {
        if (base + lane >= count) return;
        const uint8_t* entry =
            wire_ + table + static_cast<int64_t>(kPieceEntryBytes) * (base + lane);
        bytes[lane] = static_cast<int64_t>(kLaneBytes) + 2 * int64_t{load_le<uint32_t>(entry)} +
                      load_le<uint32_t>(entry + 4);
      });
      const int64_t more = warp_.scan(&bytes);
      if (more > state_.raw - at) return Status::kBadHeader;
      warp_.each([&](int lane) {
        if (base + lane < count) d_.pieces[segment_.first_block + base + lane] = at + bytes[lane];
      });
      at += more;
    }
    return at == state_.raw ? Status::kOk : Status::kBadHeader;
  }

  Warp& warp_;
  const DecodeBatch& d_;
  const WireSegment& segment_;
  const uint8_t* wire_;
  WireState state_ = {};
  int64_t raw_numel_ = 0, fixed_bytes_ = 0;
};

struct ParseSegment {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const DecodeBatch& d, int64_t i) {
    const WireState state = WireParser<Warp>(warp, d, i).run();
    warp.leader([&] { d.states[i] = state; });
  }
};

// Whether the headers were; pieces write what is wrong with them elsewhere, so that all lanes of
// all warps see the same here.
GCT_HD inline bool parsed(const WireState& state) {
  return state.status == static_cast<int32_t>(Status::kOk);
}

}  // namespace gct::gpu
