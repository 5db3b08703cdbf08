// Kernels' bodies: what is decided block by block once a step is known. Blocks whose symbols would
// all be zero, class symbols, the cheapest class model of each run.
#pragma once

#include "core/bit_io.h"
#include "core/class_code.h"
#include "core/rate_target.h"
#include "cuda/measure.h"

namespace gct::gpu {

// A block of a segment's coded sequence.
struct BlockPlace {
  int64_t run;    // among the batch's
  int64_t local;  // block of its run
  int numel;
};

GCT_HD inline BlockPlace place_block(const EncodeBatch& e, const BatchSegment& s, int64_t block) {
  const int64_t r = s.first_run + last_at_most(e.run_states + s.first_run, s.num_runs, block,
                                               [](const RunState& run) { return run.first_block; });
  const int64_t local = block - e.run_states[r].first_block;
  const int64_t left = e.runs[r].numel - local * kBlock;
  return {r, local, static_cast<int>(left < kBlock ? left : kBlock)};
}

GCT_HD inline int16_t& class_of(const EncodeBatch& e, const BlockPlace& p) {
  return e.classes[e.runs[p.run].first_block + p.local];
}

GCT_HD inline Quantizer quantizer_at(const EncodeBatch& e, int64_t run, int64_t local) {
  Quantizer q;
  q.stochastic = e.params.rounding == Rounding::kStochastic;
  q.seed = e.params.seed;
  q.position = e.runs[run].position + static_cast<uint64_t>(local * kBlock);
  return q;
}

// Task: a tile. Classes from means; then zero blocks, found by quantizing where it is likely.
struct PrepareTile {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t tile) {
    const TilePlace place = place_tile(e, tile);
    const BatchRun& run = e.runs[place.run];
    SegmentState& segment = e.states[run.segment];
    const RunHeader& header = e.run_states[place.run].header;
    if (segment.done || header.mode != RunMode::kCoded) return;
    for (int b = 0; b < place.blocks(); ++b) {
      const int64_t local = place.block + b, at = run.first_block + local;
      int c = scale_class(e.means[at]);
      c = c < kMinClass ? kZeroClass : c < kMaxClass ? c : kMaxClass;
      Quantizer q = quantizer_at(e, place.run, local);
      BlockCode code;
      const bool coded = prepare_block(header.code, c, segment.log2_step, &code, &q);
      if (c != kZeroClass && !coded) warp.leader([&] { segment.uncoded = 1; });
      if (coded && class_ratio(header.code, c) <= 4 * kSkipBelow &&
          all_zero(warp, e, run.offset + local * kBlock, place.block_numel(b), q))
        c = kZeroClass;
      warp.leader([&] { e.classes[at] = static_cast<int16_t>(c); });
    }
  }

 private:
  template <typename Warp>
  GCT_DEVICE static bool all_zero(Warp& warp, const EncodeBatch& e, int64_t offset, int n,
                                  const Quantizer& q) {
    typename Warp::template Lanes<bool> found;
    warp.each([&](int lane) {
      for (int i = lane; i < n; i += kLanes)
        if (quantize_magnitude(load_float(e.data, e.dtype, offset + i), q, i) > 0)
          found[lane] = true;
    });
    return warp.ballot(found) == 0;
  }
};

// Class symbols of a piece, 32 blocks at a time, each predicted from the last block before it in
// the same run and piece that isn't a zero block.
template <typename Warp>
class ClassWalk {
 public:
  using Integers = typename Warp::template Lanes<int>;

  typename Warp::template Lanes<BlockPlace> place;
  Integers symbol, delta;
  typename Warp::template Lanes<bool> present;

  GCT_DEVICE ClassWalk(Warp& warp, const EncodeBatch& batch, const BatchSegment& segment)
      : warp_(warp), e_(batch), segment_(segment) {}

  // Blocks [base, min(base + 32, end)) of the segment's sequence.
  GCT_DEVICE void next(int64_t base, int64_t end) {
    Integers scale, before;
    typename Warp::template Lanes<int64_t> run;
    typename Warp::template Lanes<bool> live;
    warp_.each([&](int lane) {
      present[lane] = base + lane < end;
      if (!present[lane]) return;
      place[lane] = place_block(e_, segment_, base + lane);
      run[lane] = place[lane].run;
      scale[lane] = class_of(e_, place[lane]);
      live[lane] = scale[lane] != kZeroClass;
    });
    const uint32_t mask = warp_.ballot(live);
    warp_.each([&](int lane) { before[lane] = highest_bit(mask & ((1u << lane) - 1)); });
    Integers from;
    warp_.each([&](int lane) { from[lane] = before[lane] < 0 ? 0 : before[lane]; });
    const auto run_before = warp_.shuffle(run, from);
    const auto scale_before = warp_.shuffle(scale, from);
    warp_.each([&](int lane) {
      symbol[lane] = kZeroBlock;
      delta[lane] = 0;
      if (!present[lane] || !live[lane]) return;
      const bool carried = before[lane] < 0;
      const int64_t last_run = carried ? carry_run_ : run_before[lane];
      int predicted = carried ? carry_scale_ : scale_before[lane];
      if (last_run != run[lane]) predicted = e_.run_states[run[lane]].header.base_class;
      symbol[lane] = class_symbol(scale[lane], predicted);
      delta[lane] = scale[lane] - predicted;
    });
    if (mask == 0) return;
    carry_run_ = warp_.broadcast(run, highest_bit(mask));
    carry_scale_ = warp_.broadcast(scale, highest_bit(mask));
  }

 private:
  Warp& warp_;
  const EncodeBatch& e_;
  const BatchSegment& segment_;
  int64_t carry_run_ = -1;
  int carry_scale_ = 0;
};

// A piece's place: its segment, its blocks [begin, end) there. None: not a piece of this input.
struct PiecePlace {
  int64_t segment, begin, end;
};

GCT_HD inline PiecePlace place_piece(const EncodeBatch& e, int64_t piece) {
  const int64_t i = last_at_most(e.segments, e.num_segments, piece,
                                 [](const BatchSegment& s) { return s.first_piece; });
  const int64_t begin = (piece - e.segments[i].first_piece) * kPieceBlocks;
  const int64_t end = begin + kPieceBlocks, all = e.states[i].coded_blocks;
  return {i, begin, end < all ? end : all};
}

// Task: a piece. Counts the class symbols of each run.
struct CountClassSymbols {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t piece) {
    const PiecePlace p = place_piece(e, piece);
    if (e.states[p.segment].done) return;
    ClassWalk<Warp> walk(warp, e, e.segments[p.segment]);
    for (int64_t base = p.begin; base < p.end; base += kLanes) {
      walk.next(base, p.end);
      warp.each([&](int lane) {
        if (!walk.present[lane]) return;
        warp.atomic_add(&e.class_counts[walk.place[lane].run * kClassSymbols + walk.symbol[lane]],
                        1);
      });
    }
  }
};

// Task: a run. The cheapest class model, the first one of several: each lane computes one's cost.
struct ChooseModel {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t r) {
    RunState& s = e.run_states[r];
    if (s.header.mode != RunMode::kCoded || e.states[e.runs[r].segment].done) return;
    int64_t* counts = e.class_counts + r * kClassSymbols;
    typename Warp::template Lanes<int64_t> choice;  // cost, then number
    warp.each([&](int lane) {
      int64_t best = INT64_MAX;
      for (int model = lane; model < tables::kNumClassModels; model += kLanes) {
        int64_t cost = 0;
        for (int i = 0; i < kClassSymbols; ++i)
          cost += counts[i] * e.tables.class_encode[model].cost[i];
        const int64_t key = cost * tables::kNumClassModels + model;
        if (key < best) best = key;
      }
      choice[lane] = best;
    });
    const int64_t best = warp.fold(choice, [](int64_t a, int64_t b) { return a < b ? a : b; });
    warp.leader([&] {
      s.header.model = static_cast<uint8_t>(best % tables::kNumClassModels);
      s.class_cost = best / tables::kNumClassModels;
    });
    warp.sync();
    warp.each([&](int lane) {  // for the next attempt
      if (lane < kClassSymbols) counts[lane] = 0;
    });
  }
};

}  // namespace gct::gpu
