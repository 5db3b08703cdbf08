// Kernels' bodies: one pass over the input gives each block its mean and class and each run its
// mode, base class and shape; then every run's place in its segment.
#pragma once

#include "core/convert.h"
#include "core/statistics.h"
#include "cuda/batch.h"

namespace gct::gpu {

GCT_HD inline float load_float(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[i];
  const uint16_t h = static_cast<const uint16_t*>(data)[i];
  return dtype == DType::kBFloat16 ? bfloat16_to_float(h) : float16_to_float(h);
}

// A tile's place: its run, and its first block inside that.
struct TilePlace {
  int64_t run, block, numel;  // numel: elements of the tile

  GCT_HD int block_numel(int i) const {
    const int64_t left = numel - int64_t{i} * kBlock;
    return static_cast<int>(left < kBlock ? left : kBlock);
  }
  GCT_HD int blocks() const { return static_cast<int>(num_blocks(numel)); }
};

GCT_HD inline TilePlace place_tile(const EncodeBatch& e, int64_t tile) {
  const int64_t run =
      last_at_most(e.runs, e.num_runs, tile, [](const BatchRun& r) { return r.first_tile; });
  const int64_t block = (tile - e.runs[run].first_tile) * kTileBlocks;
  const int64_t left = e.runs[run].numel - block * kBlock;
  return {run, block, left < kTileNumel ? left : kTileNumel};
}

struct Plus {
  template <typename T>
  GCT_HD T operator()(T a, T b) const {
    return a + b;
  }
};

template <typename Warp>
class TileMeasurer {
 public:
  GCT_DEVICE TileMeasurer(Warp& warp, const EncodeBatch& batch, const TilePlace& place)
      : warp_(warp),
        e_(batch),
        place_(place),
        first_(batch.runs[place.run].offset + place.block * kBlock) {}

  GCT_DEVICE void block(int b) {
    const int n = place_.block_numel(b);
    Values sum_abs, sum_square;
    warp_.each([&](int lane) {
      GCT_UNROLL
      for (int base = 0; base < kBlock; base += kLanes) {
        if (base + lane >= n) continue;
        const float magnitude = bits_float(float_bits(load(b, base + lane)) & 0x7fffffffu);
        sum_abs[lane] += magnitude;
        sum_square[lane] += magnitude * magnitude;
      }
    });
    const float abs = warp_.fold(sum_abs, Plus());
    float square = warp_.fold(sum_square, Plus());
    float mean = abs / static_cast<float>(n);
    double exact_square = static_cast<double>(square);
    if (!finite(mean)) mean = mean_of_large(b, n);
    const int c = scale_class(mean);
    if (c >= kMinClass && c <= kMaxClass && !(square >= 1e-30f && square <= 1e37f))
      exact_square = sum_of_squares(b, n);
    warp_.each([&](int lane) {
      if (lane == b) keep(lane, n, c, mean, exact_square);
    });
  }

  GCT_DEVICE void finish(int64_t tile) {
    const auto lower = [](int a, int b) { return a < b ? a : b; };
    const auto higher = [](int a, int b) { return a > b ? a : b; };
    TileSums sums;
    sums.abs = warp_.fold(abs_, Plus());
    sums.shape_abs = warp_.fold(shape_abs_, Plus());
    sums.shape_square = warp_.fold(shape_square_, Plus());
    sums.class_sum = warp_.fold(class_sum_, Plus());
    sums.blocks = warp_.fold(live_, Plus());
    sums.numel = warp_.fold(numel_, Plus());
    Integers low, high;
    warp_.each([&](int lane) {
      low[lane] = lowest_[lane] + kMaxClass + 1;
      high[lane] = highest_[lane] + kMinClass - 1;
    });
    sums.lowest = warp_.fold(low, lower);
    sums.highest = warp_.fold(high, higher);
    warp_.leader([&] { e_.tiles[tile] = sums; });
  }

 private:
  using Values = typename Warp::template Lanes<float>;
  using Doubles = typename Warp::template Lanes<double>;
  using Counts = typename Warp::template Lanes<int64_t>;
  using Integers = typename Warp::template Lanes<int>;

  GCT_DEVICE static bool finite(float x) { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }
  GCT_DEVICE float load(int b, int i) const {
    return load_float(e_.data, e_.dtype, first_ + int64_t{b} * kBlock + i);
  }

  // Where the plain sum overflowed; beyond all classes if a value isn't finite. All lanes do the
  // same.
  GCT_DEVICE float mean_of_large(int b, int n) const {
    double sum = 0;
    bool sound = true;
    for (int i = 0; i < n; ++i) {
      const float x = load(b, i);
      sound = sound && finite(x);
      sum += static_cast<double>(bits_float(float_bits(x) & 0x7fffffffu));
    }
    return sound ? static_cast<float>(sum / n) : 3.4e38f;
  }

  GCT_DEVICE double sum_of_squares(int b, int n) const {
    double sum = 0;
    for (int i = 0; i < n; ++i) sum += static_cast<double>(load(b, i)) * load(b, i);
    return sum;
  }

  // Lane b keeps block b's part of the sums. Bounds are kept as distances from where none is.
  GCT_DEVICE void keep(int lane, int n, int c, float mean, double square) {
    const int64_t at = e_.runs[place_.run].first_block + place_.block + lane;
    e_.means[at] = mean;
    e_.classes[at] =
        c < kMinClass ? kZeroClass : static_cast<int16_t>(c < kMaxClass ? c : kMaxClass);
    if (c < kMinClass) return;
    lowest_[lane] = c - (kMaxClass + 1);
    highest_[lane] = c - (kMinClass - 1);
    if (c > kMaxClass) return;
    const double inverse = inverse_scale(c);
    abs_[lane] = static_cast<double>(mean) * n;
    shape_abs_[lane] = abs_[lane] * inverse;
    shape_square_[lane] = square * (inverse * inverse);
    class_sum_[lane] = c;
    live_[lane] = 1;
    numel_[lane] = n;
  }

  Warp& warp_;
  const EncodeBatch& e_;
  TilePlace place_;
  int64_t first_;
  Doubles abs_, shape_abs_, shape_square_;
  Counts class_sum_, live_, numel_;
  Integers lowest_, highest_;
};

// Task: a tile.
struct MeasureTile {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t tile) {
    const TilePlace place = place_tile(e, tile);
    if (e.runs[place.run].raw) return;
    TileMeasurer<Warp> measurer(warp, e, place);
    for (int b = 0; b < place.blocks(); ++b) measurer.block(b);
    measurer.finish(tile);
  }
};

// Half away from zero, as std::lround.
GCT_HD inline int64_t round_half_away(double x) {
  return static_cast<int64_t>(x < 0 ? x - 0.5 : x + 0.5);
}

// Task: a run. Adds up its tiles, lane by lane and then lanes pairwise.
struct SettleRun {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t r) {
    const BatchRun& run = e.runs[r];
    RunState s = {};
    s.header.numel = run.numel;
    if (run.raw || e.params.kind == Kind::kRaw) {
      s.header.mode = RunMode::kRaw;
    } else {
      if (e.params.kind != Kind::kFixed)
        s.header.code.allocation8 = static_cast<uint8_t>(e.params.allocation8);
      settle(e, sum_tiles(warp, e, run), &s);
    }
    warp.leader([&] {
      e.run_states[r] = s;
      if (e.statistics != nullptr) report(s, e.statistics + r * kStatistics);
    });
  }

 private:
  GCT_DEVICE static void report(const RunState& s, float* out) {
    const bool coded = s.header.mode == RunMode::kCoded;
    out[0] = s.mean_abs;
    out[1] = coded ? model_tables::kShapes[s.header.code.shape] : 0.0f;
    out[2] = s.header.mode == RunMode::kNonFinite ? 1.0f : 0.0f;
  }

  template <typename Warp>
  GCT_DEVICE static TileSums sum_tiles(Warp& warp, const EncodeBatch& e, const BatchRun& run) {
    const int64_t count = div_up(run.numel, kTileNumel);
    typename Warp::template Lanes<TileSums> partial;
    warp.each([&](int lane) {
      TileSums sum = {};
      sum.lowest = kMaxClass + 1;
      sum.highest = kMinClass - 1;
      for (int64_t i = lane; i < count; i += kLanes) sum = add(sum, e.tiles[run.first_tile + i]);
      partial[lane] = sum;
    });
    TileSums total;
    total.abs = fold(warp, partial, [](const TileSums& t) { return t.abs; }, Plus());
    total.shape_abs = fold(warp, partial, [](const TileSums& t) { return t.shape_abs; }, Plus());
    total.shape_square =
        fold(warp, partial, [](const TileSums& t) { return t.shape_square; }, Plus());
    total.class_sum = fold(warp, partial, [](const TileSums& t) { return t.class_sum; }, Plus());
    total.blocks = fold(warp, partial, [](const TileSums& t) { return t.blocks; }, Plus());
    total.numel = fold(warp, partial, [](const TileSums& t) { return t.numel; }, Plus());
    total.lowest = fold(
        warp, partial, [](const TileSums& t) { return t.lowest; },
        [](int a, int b) { return a < b ? a : b; });
    total.highest = fold(
        warp, partial, [](const TileSums& t) { return t.highest; },
        [](int a, int b) { return a > b ? a : b; });
    return total;
  }

  GCT_DEVICE static TileSums add(const TileSums& a, const TileSums& b) {
    return {a.abs + b.abs,
            a.shape_abs + b.shape_abs,
            a.shape_square + b.shape_square,
            a.class_sum + b.class_sum,
            a.blocks + b.blocks,
            a.numel + b.numel,
            a.lowest < b.lowest ? a.lowest : b.lowest,
            a.highest > b.highest ? a.highest : b.highest};
  }

  template <typename Warp, typename Get, typename Op>
  GCT_DEVICE static auto fold(Warp& warp, const typename Warp::template Lanes<TileSums>& values,
                              Get get, Op op) {
    using T = decltype(get(TileSums()));
    typename Warp::template Lanes<T> field;
    warp.each([&](int lane) { field[lane] = get(values[lane]); });
    return warp.fold(field, op);
  }

  GCT_DEVICE static void settle(const EncodeBatch& e, const TileSums& sums, RunState* s) {
    RunHeader& h = s->header;
    if (sums.highest > kMaxClass) {
      h.mode = RunMode::kNonFinite;
    } else if (sums.blocks == 0) {
      h.mode = RunMode::kZero;
    } else {
      h.mode = RunMode::kCoded;
      const double mean = static_cast<double>(sums.class_sum) / static_cast<double>(sums.blocks);
      if (e.params.kind != Kind::kFixed) h.base_class = static_cast<int16_t>(round_half_away(mean));
      h.code.shape =
          shape_of_moments(static_cast<double>(sums.numel), sums.shape_abs, sums.shape_square);
      s->mean_abs = static_cast<float>(sums.abs / static_cast<double>(h.numel));
      s->live_numel = sums.numel;
      s->lowest = sums.lowest;
      s->highest = sums.highest;
    }
  }
};

GCT_HD inline int64_t header_bytes(const BatchSegment& s) {
  return static_cast<int64_t>(kSegmentHeaderBytes) +
         static_cast<int64_t>(kRunHeaderBytes) * s.num_runs;
}

GCT_HD inline int64_t all_raw_bytes(const EncodeBatch& e, const BatchSegment& s) {
  return header_bytes(s) + s.numel * raw_type_bytes(raw_type_of(e.dtype));
}

// Task: a segment. Where each run's blocks and bytes lie.
struct PlaceRuns {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t i) {
    const BatchSegment& segment = e.segments[i];
    const bool fixed = e.params.kind == Kind::kFixed;
    const int bits = fixed ? static_cast<int>(e.params.value) : 0;
    SegmentState s = {};
    for (int64_t base = 0; base < segment.num_runs; base += kLanes) {
      typename Warp::template Lanes<int64_t> blocks, raw, payload;
      warp.each([&](int lane) {
        if (base + lane >= segment.num_runs) return;
        const RunHeader& h = e.run_states[segment.first_run + base + lane].header;
        blocks[lane] = h.mode == RunMode::kCoded ? num_blocks(h.numel) : 0;
        raw[lane] = h.mode == RunMode::kRaw ? h.numel : 0;
        payload[lane] = h.mode == RunMode::kCoded && fixed ? fixed_run_bytes(h.numel, bits) : 0;
      });
      const int64_t more_blocks = warp.scan(&blocks), more_raw = warp.scan(&raw),
                    more_payload = warp.scan(&payload);
      warp.each([&](int lane) {
        if (base + lane >= segment.num_runs) return;
        RunState& r = e.run_states[segment.first_run + base + lane];
        r.first_block = s.coded_blocks + blocks[lane];
        r.raw = (s.raw_numel + raw[lane]) * raw_type_bytes(raw_type_of(e.dtype));
        r.payload = header_bytes(segment) + s.payload_bytes + payload[lane];
      });
      s.coded_blocks += more_blocks;
      s.raw_numel += more_raw;
      s.payload_bytes += more_payload;
    }
    finish(e, segment, &s);
    warp.leader([&] { e.states[i] = s; });
  }

 private:
  GCT_DEVICE static void finish(const EncodeBatch& e, const BatchSegment& segment,
                                SegmentState* s) {
    const int64_t all_raw = all_raw_bytes(e, segment);
    const int64_t uncoded =
        header_bytes(segment) + s->raw_numel * raw_type_bytes(raw_type_of(e.dtype));
    if (e.params.kind == Kind::kFixed) {
      s->size = uncoded + s->payload_bytes;
      s->as_raw = s->size > all_raw;
    } else if (e.params.kind == Kind::kGG) {
      s->num_pieces = div_up(s->coded_blocks, kPieceBlocks);
      s->as_raw =
          s->coded_blocks > 0 && e.params.target == Target::kBits && all_raw <= segment.slot;
      s->size = uncoded;
    } else {
      s->as_raw = 1;
    }
    if (s->as_raw) s->size = all_raw;
    s->done = s->as_raw || e.params.kind != Kind::kGG || s->coded_blocks == 0;
  }
};

}  // namespace gct::gpu
