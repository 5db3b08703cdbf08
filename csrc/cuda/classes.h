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

// What becomes of an element: its integer, the symbol that stands for it or for its high part, and
// how far that is beyond the alphabet.
struct Element {
  int32_t value, excess;
  int symbol;
};

GCT_HD inline Element quantize_element(float x, const Quantizer& q, int i, int shift) {
  const int32_t k = quantize_magnitude(x, q, i);
  const int32_t value = (float_bits(x) >> 31) != 0 ? -k : k;
  const int32_t half = shift > 0 ? 1 << (shift - 1) : 0;
  const int32_t high = (value + half) >> shift;
  const int32_t magnitude = high < 0 ? -high : high;
  return {value, magnitude - q.magnitudes - 1, magnitude_symbol(magnitude, high < 0, q.magnitudes)};
}

// Task: a block. Its class from its mean, its symbols; it is a zero block if these are all zero,
// which is looked at where it is likely.
struct QuantizeBlock {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t at) {
    const int64_t r =
        last_at_most(e.runs, e.num_runs, at, [](const BatchRun& run) { return run.first_block; });
    const BatchRun& run = e.runs[r];
    const RunState& state = e.run_states[r];
    SegmentState& segment = e.states[run.segment];
    if (segment.done || state.header.mode != RunMode::kCoded) return;
    const RunCode& run_code = state.header.code;
    const int64_t local = at - run.first_block, left = run.numel - local * kBlock;
    const int n = static_cast<int>(left < kBlock ? left : kBlock);
    int c = scale_class(e.means[at]);
    c = c < kMinClass ? kZeroClass : c < kMaxClass ? c : kMaxClass;
    Quantizer q = quantizer_at(e, r, local);
    BlockCode code;
    const bool coded = prepare_block(run_code, c, segment.log2_step, &code, &q);
    if (c != kZeroClass && !coded) warp.leader([&] { segment.uncoded = 1; });
    const BatchSegment& s = e.segments[run.segment];
    const int64_t block = state.first_block + local;  // in the segment's sequence
    Found found = {false, false};
    if (coded)
      found = quantize(warp, e, run.offset + local * kBlock, n, q, code.shift,
                       e.symbols + (s.first_piece + block / kPieceBlocks) * kPieceSymbols +
                           block % kPieceBlocks * kBlock);
    if (coded && class_ratio(run_code, c) <= 4 * kSkipBelow && !found.values) c = kZeroClass;
    warp.leader([&] {
      e.classes[at] = static_cast<int16_t>(c);
      BlockNote& note = e.notes[s.first_block + block];
      note.table = c != kZeroClass && coded ? static_cast<int16_t>(code.table) : int16_t{-1};
      note.numel = static_cast<uint16_t>(n);
      note.extra = c != kZeroClass && (found.escapes || code.shift > 0);
    });
  }

 private:
  struct Found {
    bool values, escapes;  // one that isn't zero, one beyond the alphabet
  };

  template <typename Warp>
  GCT_DEVICE static Found quantize(Warp& warp, const EncodeBatch& e, int64_t offset, int n,
                                   const Quantizer& q, int shift, uint8_t* symbols) {
    typename Warp::template Lanes<bool> values, escapes;
    warp.each([&](int lane) {
      GCT_UNROLL
      for (int base = 0; base < kBlock; base += kLanes) {
        const int i = base + lane;
        if (i >= n) continue;
        const Element x = quantize_element(load_float(e.data, e.dtype, offset + i), q, i, shift);
        symbols[i] = static_cast<uint8_t>(x.symbol);
        values[lane] = values[lane] || x.value != 0;
        escapes[lane] = escapes[lane] || x.symbol == kEscapeSymbol;
      }
    });
    return {warp.ballot(values) != 0, warp.ballot(escapes) != 0};
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
