// Kernels' bodies: from segments to values, once their headers are parsed. Every read has an end; a
// segment that isn't sound decodes to NaN, and its status says why.
#pragma once

#include "core/bit_io.h"
#include "core/class_code.h"
#include "core/convert.h"
#include "cuda/parse.h"

namespace gct::gpu {

GCT_HD inline void store_value(float value, bool accumulate, float* out) {
  *out = accumulate ? *out + value : value;
}

// Task: a tile of a run without pieces: zeros, NaN, raw data, kind fixed.
struct DecodeTile {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const DecodeBatch& d, int64_t task) {
    const int64_t i = last_at_most(d.segments, d.num_segments, task,
                                   [](const WireSegment& s) { return s.first_tile; });
    const WireSegment& segment = d.segments[i];
    const WireState& state = d.states[i];
    const int64_t tile = task - segment.first_tile;
    if (!parsed(state) || tile >= state.num_tiles) return;
    const WireRun& run = d.runs[segment.first_run +
                                last_at_most(d.runs + segment.first_run, state.header.num_runs,
                                             tile, [](const WireRun& r) { return r.first_tile; })];
    const int64_t first = (tile - run.first_tile) * kTileNumel;
    const int64_t left = run.header.numel - first;
    const int n = static_cast<int>(left < kTileNumel ? left : kTileNumel);
    float* out = d.out + segment.out + run.out + first;
    const uint8_t* data = d.wire + segment.at + run.payload;
    if (run.header.mode == RunMode::kZero) {
      if (!d.accumulate) fill(warp, 0.0f, n, false, out);
    } else if (run.header.mode == RunMode::kNonFinite) {
      fill(warp, bits_float(0x7fc00000u), n, d.accumulate, out);
    } else if (run.header.mode == RunMode::kRaw) {
      copy_raw(warp, data + first * raw_type_bytes(state.header.raw_type), state.header.raw_type, n,
               d.accumulate, out);
    } else if (state.header.kind == WireKind::kFixed) {
      for (int b = 0; b * kBlock < n; ++b)
        unpack(warp, d, run.header, state.header.fixed_bits, data, first / kBlock + b,
               n - b * kBlock < kBlock ? n - b * kBlock : kBlock, out + b * kBlock);
    }
  }

 private:
  template <typename Warp>
  GCT_DEVICE static void fill(Warp& warp, float value, int n, bool accumulate, float* out) {
    warp.each([&](int lane) {
      for (int i = lane; i < n; i += kLanes) store_value(value, accumulate, out + i);
    });
  }

  template <typename Warp>
  GCT_DEVICE static void copy_raw(Warp& warp, const uint8_t* data, RawType type, int n,
                                  bool accumulate, float* out) {
    warp.each([&](int lane) {
      for (int i = lane; i < n; i += kLanes) {
        float value;
        if (type == RawType::kFloat32) {
          value = bits_float(load_le<uint32_t>(data + 4 * i));
        } else {
          const uint16_t h = load_le<uint16_t>(data + 2 * i);
          value = type == RawType::kBFloat16 ? bfloat16_to_float(h) : float16_to_float(h);
        }
        store_value(value, accumulate, out + i);
      }
    });
  }

  // A block of kind fixed; a lane takes 8 codes, which are `bits` whole bytes.
  template <typename Warp>
  GCT_DEVICE static void unpack(Warp& warp, const DecodeBatch& d, const RunHeader& run, int bits,
                                const uint8_t* data, int64_t block, int n, float* out) {
    const float scale = bfloat16_to_float(load_le<uint16_t>(data + 2 * block));
    const uint8_t* codes = data + 2 * num_blocks(run.numel) + block * (kBlock / 8) * bits;
    const float* levels = d.tables.fixed_levels + 255 * run.code.shape + (1 << (bits - 1)) - 1;
    const int bytes = (n * bits + 7) / 8;
    warp.each([&](int lane) {
      uint64_t packed = 0;
      for (int j = 0; j < bits && lane * bits + j < bytes; ++j)
        packed |= static_cast<uint64_t>(codes[lane * bits + j]) << (8 * j);
      for (int j = 0; j < 8 && 8 * lane + j < n; ++j) {
        const uint32_t code = static_cast<uint32_t>(packed >> (j * bits)) & ((1u << bits) - 1);
        const float magnitude = scale * levels[code & ((1u << (bits - 1)) - 1)];
        store_value((code >> (bits - 1)) != 0 ? -magnitude : magnitude, d.accumulate,
                    out + 8 * lane + j);
      }
    });
  }
};

// One piece of kind gg.
template <typename Warp>
class PieceDecoder {
 public:
  GCT_DEVICE PieceDecoder(Warp& warp, const DecodeBatch& batch, int64_t segment, int64_t piece)
      : warp_(warp),
        d_(batch),
        segment_(batch.segments[segment]),
        state_(batch.states[segment]),
        entry_(batch.wire + segment_.at + state_.payload +
               static_cast<int64_t>(kPieceEntryBytes) * piece),
        data_(batch.wire + segment_.at + batch.pieces[segment_.first_block + piece]),
        words_(data_ + kLaneBytes),
        words_end_(words_ + 2 * size_t{load_le<uint32_t>(entry_)}),
        extra_(words_end_, load_le<uint32_t>(entry_ + 4)),
        begin_(piece << state_.header.piece_blocks_log2) {
    const int64_t end = begin_ + (int64_t{1} << state_.header.piece_blocks_log2);
    end_ = end < state_.coded_blocks ? end : state_.coded_blocks;
  }

  GCT_DEVICE Status run() {
    Flags bad;
    warp_.each([&](int lane) {
      states_[lane] = load_le<uint32_t>(data_ + 4 * lane);
      bad[lane] = states_[lane] < kRansLow || states_[lane] >> 31 != 0;
    });
    if (warp_.ballot(bad) != 0) return Status::kCorrupt;
    Status status = decode_classes();
    for (int64_t b = begin_; b < end_ && status == Status::kOk; ++b) status = decode_block(b);
    if (status != Status::kOk) return status;
    warp_.each([&](int lane) { bad[lane] = states_[lane] != kRansLow; });
    const bool ended =
        warp_.ballot(bad) == 0 && words_ == words_end_ && !extra_.overrun() && extra_.exhausted();
    return ended ? Status::kOk : Status::kCorrupt;
  }

 private:
  using Flags = typename Warp::template Lanes<bool>;
  using Integers = typename Warp::template Lanes<int>;
  using Entries = typename Warp::template Lanes<uint32_t>;

  struct Place {
    int64_t run;  // in the batch's scratch
    int numel;
    float* out;
  };

  GCT_DEVICE Place place(int64_t b) const {
    const WireRun* runs = d_.runs + segment_.first_run;
    const int64_t r = last_at_most(runs, state_.header.num_runs, b,
                                   [](const WireRun& run) { return run.first_block; });
    const int64_t start = (b - runs[r].first_block) * kBlock;
    const int64_t left = runs[r].header.numel - start;
    return {segment_.first_run + r, static_cast<int>(left < kBlock ? left : kBlock),
            d_.out + segment_.out + runs[r].out + start};
  }

  // One symbol on every active lane, whose table entry is given; false if words ran out. Words of
  // one step are taken in lane order.
  GCT_DEVICE bool take(const Entries& entry, const Flags& active) {
    Flags low;
    warp_.each([&](int lane) {
      if (active[lane]) states_[lane] = rans_advance(states_[lane], entry[lane]);
      low[lane] = active[lane] && states_[lane] < kRansLow;
    });
    const uint32_t mask = warp_.ballot(low);
    if (2 * count_bits(mask) > words_end_ - words_) return false;
    warp_.each([&](int lane) {
      if (!low[lane]) return;
      const uint8_t* word = words_ + 2 * count_bits(mask & ((1u << lane) - 1));
      states_[lane] = (states_[lane] << 16) | load_le<uint16_t>(word);
    });
    words_ += 2 * count_bits(mask);
    return true;
  }

  // Fills d_.classes[begin_, end_).
  GCT_DEVICE Status decode_classes() {
    int64_t run = -1;
    int predicted = 0;
    for (int64_t base = begin_; base < end_; base += kLanes) {
      Entries entry;
      Flags active;
      typename Warp::template Lanes<int64_t> runs;
      Integers symbols;
      warp_.each([&](int lane) {
        active[lane] = base + lane < end_;
        if (!active[lane]) return;
        runs[lane] = place(base + lane).run;
        const int model = d_.runs[runs[lane]].header.model;
        entry[lane] = d_.tables.class_decode[model].slot[states_[lane] & (kProbTotal - 1)];
        symbols[lane] = static_cast<int>(entry_symbol(entry[lane]));
      });
      if (!take(entry, active)) return Status::kCorrupt;
      for (int lane = 0; lane < kLanes && base + lane < end_; ++lane) {
        const int64_t own_run = warp_.broadcast(runs, lane);
        const Status status = restore_class(warp_.broadcast(symbols, lane), own_run != run, own_run,
                                            base + lane, &predicted);
        if (status != Status::kOk) return status;
        run = own_run;
      }
    }
    warp_.sync();
    return Status::kOk;
  }

  // All lanes do the same; one writes.
  GCT_DEVICE Status restore_class(int symbol, bool first, int64_t run, int64_t block,
                                  int* predicted) {
    const RunHeader& header = d_.runs[run].header;
    if (first) *predicted = header.base_class;
    int16_t c = kZeroClass;
    if (symbol != kZeroBlock) {
      int delta = symbol - kFirstDelta - tables::kClassDeltaMax;
      uint32_t escaped = 0;
      if (symbol == kClassEscape) {
        if (!get_golomb(&extra_, 3, &escaped) || escaped > 2048) return Status::kCorrupt;
        delta = unzigzag(escaped);
      }
      *predicted += delta;
      BlockCode code;
      if (*predicted < kMinClass || *predicted > kMaxClass ||
          !block_code(header.code, *predicted, &code))
        return Status::kCorrupt;
      c = static_cast<int16_t>(*predicted);
    }
    warp_.leader([&] { d_.classes[segment_.first_block + block] = c; });
    return Status::kOk;
  }

  GCT_DEVICE Status decode_block(int64_t b) {
    const Place p = place(b);
    const int c = d_.classes[segment_.first_block + b];
    BlockCode code;
    if (c == kZeroClass || !block_code(d_.runs[p.run].header.code, c, &code)) {
      if (d_.accumulate) return Status::kOk;
      warp_.each([&](int lane) {
        for (int i = lane; i < p.numel; i += kLanes) p.out[i] = 0.0f;
      });
      return Status::kOk;
    }
    const int set = level_set(state_.header.levels(), code);
    const DecodeTable& table = d_.tables.decode[code.table];
    const LevelTable& levels = d_.tables.levels[set * kNumTables + code.table];
    for (int base = 0; base < p.numel; base += kLanes) {
      Entries entry;
      Flags active, escaped;
      Integers symbols;
      warp_.each([&](int lane) {
        active[lane] = base + lane < p.numel;
        if (!active[lane]) return;
        entry[lane] = table.slot[states_[lane] & (kProbTotal - 1)];
        symbols[lane] = static_cast<int>(entry_symbol(entry[lane]));
        escaped[lane] = symbols[lane] == kEscapeSymbol;
      });
      if (!take(entry, active)) return Status::kCorrupt;
      if (code.shift == 0) {
        warp_.each([&](int lane) {
          if (active[lane])
            store_value(code.step * levels.level[symbols[lane]], d_.accumulate,
                        p.out + base + lane);
        });
      }
      const uint32_t mask = warp_.ballot(escaped);
      if (mask == 0 && code.shift == 0) continue;
      const Status status = restore(p, base, code, symbols, mask, set);
      if (status != Status::kOk) return status;
    }
    return Status::kOk;
  }

  // What the alphabet couldn't hold, element by element: all lanes read the same bits, the
  // element's own one stores. Escapes are added to values that were decoded with level 0.
  GCT_DEVICE Status restore(const Place& p, int base, const BlockCode& code,
                            const Integers& symbols, uint32_t escapes, int level_set) {
    const int n = p.numel - base < kLanes ? p.numel - base : kLanes;
    for (int element = 0; element < n; ++element) {
      const bool escaped = (escapes >> element & 1) != 0;
      if (!escaped && code.shift == 0) continue;
      const int symbol = warp_.broadcast(symbols, element);
      bool negative = symbol_negative(symbol);
      int32_t k = symbol_magnitude(symbol);
      if (escaped && !get_escape(code.table, &negative, &k)) return Status::kCorrupt;
      float value;
      if (code.shift > 0) {
        const int64_t half = int64_t{1} << (code.shift - 1);
        const int64_t high = negative ? -int64_t{k} : int64_t{k};
        value = code.step * static_cast<float>(high * (2 * half) + extra_.get(code.shift) - half);
      } else {
        value = code.step * level(code.table, k, level_set);
        if (negative) value = -value;
      }
      warp_.each([&](int lane) {
        if (lane == element) store_value(value, d_.accumulate, p.out + base + lane);
      });
    }
    return Status::kOk;
  }

  GCT_DEVICE bool get_escape(int table, bool* negative, int32_t* magnitude) {
    uint32_t excess;
    *negative = extra_.get(1) != 0;
    if (!get_golomb(&extra_, escape_order(table), &excess) || excess > (1u << 30)) return false;
    *magnitude = table_magnitudes(table) + 1 + static_cast<int32_t>(excess);
    return true;
  }

  Warp& warp_;
  const DecodeBatch& d_;
  const WireSegment& segment_;
  const WireState& state_;
  const uint8_t* entry_;
  const uint8_t* data_;
  const uint8_t* words_;
  const uint8_t* words_end_;
  BitReader extra_;
  int64_t begin_, end_;
  typename Warp::template Lanes<uint32_t> states_;
};

// Task: every num_tasks-th piece of a segment.
struct DecodePieces {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const DecodeBatch& d, int64_t task) {
    const int64_t i = last_at_most(d.segments, d.num_segments, task,
                                   [](const WireSegment& s) { return s.first_task; });
    const WireSegment& segment = d.segments[i];
    WireState& state = d.states[i];
    if (!parsed(state)) return;
    for (int64_t piece = task - segment.first_task; piece < state.header.num_pieces;
         piece += segment.num_tasks) {
      const Status status = PieceDecoder<Warp>(warp, d, i, piece).run();
      if (status != Status::kOk)
        warp.leader([&] { state.piece_status = static_cast<int32_t>(status); });
    }
  }
};

// Task: a tile of a segment's values. After an error nothing in them is to be trusted: NaN is loud.
// The first one tells the status.
struct PoisonTile {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const DecodeBatch& d, int64_t task) {
    const int64_t i = last_at_most(d.segments, d.num_segments, task,
                                   [](const WireSegment& s) { return s.first_tile; });
    const WireSegment& segment = d.segments[i];
    const int32_t status = parsed(d.states[i]) ? d.states[i].piece_status : d.states[i].status;
    warp.leader([&] {
      if (d.statuses != nullptr && task == segment.first_tile) d.statuses[i] = status;
    });
    if (status == static_cast<int32_t>(Status::kOk)) return;
    const int64_t begin = (task - segment.first_tile) * kTileNumel;
    warp.each([&](int lane) {
      for (int64_t j = begin + lane; j < begin + kTileNumel && j < segment.numel; j += kLanes)
        d.out[segment.out + j] = bits_float(0x7fc00000u);
    });
  }
};

}  // namespace gct::gpu
