// Kernels' bodies: from bits to the quantizer's step. The generalized Gaussian model gives the
// neighbourhood; a sample of blocks, quantized with all steps of a small grid at once, gives the
// step. csrc/cpu/rate.cpp goes from step to step instead; both aim at the same size.
#pragma once

#include "cuda/classes.h"

namespace gct::gpu {

// 2^x by IEEE operations in a stated order, so that it doesn't depend on a library: a Taylor
// polynomial of e^t for |t| <= ln(2) / 2, to 1e-15.
GCT_HD inline double exp2_exact(double x) {
  const int whole = static_cast<int>(round_half_away(x));
  const double t = (x - whole) * 0.69314718055994530942;
  double sum = 1;
  for (int i = 14; i > 0; --i) sum = 1 + sum * t / i;
  const uint64_t bits = static_cast<uint64_t>(1023 + whole) << 52;
  double power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

GCT_HD inline int table_offset(int i) { return i == 1 ? -4 : i == 2 ? 4 : i == 3 ? -8 : 0; }

GCT_HD inline RunCode run_code(const EncodeBatch& e, double log2_step, int offset,
                               const RunCode& base) {
  RunCode code = base;
  code.step = e.params.target == Target::kStep ? static_cast<float>(e.params.value)
                                               : static_cast<float>(exp2_exact(log2_step));
  code.log2_ratio = static_cast<int16_t>(round_half_away(-16 * log2_step) + offset);
  return code;
}

GCT_HD inline double candidate_step(const SegmentState& s, int candidate) {
  return s.center + (candidate - kCandidates / 2) * kCandidateOctaves;
}

GCT_HD inline double ratio_at(const EncodeBatch& e, int scale_class, double log2_step) {
  return (8 - e.params.allocation8) * scale_class - 16 * log2_step;
}

// Bits of all symbols of a segment, by the model; each lane may ask for another step.
GCT_HD inline double model_bits(const EncodeBatch& e, int64_t segment, double log2_step) {
  const Group* groups = e.groups + segment * e.group_slots;
  const int64_t count = e.states[segment].num_groups;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += groups[i].numel *
           model_rate(groups[i].shape, ratio_at(e, groups[i].scale_class, log2_step));
  return sum;
}

// The model's bits fall with the step: bisection on log2(step), by 33 parts at a time.
template <typename Warp>
GCT_DEVICE double solve_bits(Warp& warp, const EncodeBatch& e, int64_t segment, double bits) {
  double lo = e.states[segment].finest, hi = e.states[segment].coarsest;
  for (int round = 0; round < 5; ++round) {
    const double part = (hi - lo) / (kLanes + 1);
    typename Warp::template Lanes<bool> above;
    warp.each(
        [&](int lane) { above[lane] = model_bits(e, segment, lo + part * (lane + 1)) >= bits; });
    const int under = highest_bit(warp.ballot(above)) + 1;  // the last that has more
    hi = under < kLanes ? lo + part * (under + 1) : hi;
    lo = lo + part * under;
  }
  return (lo + hi) / 2;
}

// Task: a tile. Elements by shape and, where the ratio depends on it, class.
struct CountGroups {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t tile) {
    const TilePlace place = place_tile(e, tile);
    const BatchRun& run = e.runs[place.run];
    const RunState& s = e.run_states[place.run];
    if (s.header.mode != RunMode::kCoded || e.states[run.segment].done) return;
    int64_t* histogram = e.histogram + run.segment * e.group_slots;
    if (e.params.allocation8 == 8) {
      if (place.block > 0) return;
      warp.leader([&] { warp.atomic_add(&histogram[s.header.code.shape], s.live_numel); });
      return;
    }
    warp.each([&](int lane) {
      if (lane >= place.blocks()) return;
      const int c = e.classes[run.first_block + place.block + lane];
      if (c == kZeroClass) return;
      warp.atomic_add(&histogram[s.header.code.shape * kClasses + c - kMinClass],
                      place.block_numel(lane));
    });
  }
};

// Task: a segment. Groups, bounds of the step, what to aim at, and the model's step.
struct AimSegment {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t i) {
    SegmentState& s = e.states[i];
    if (s.done) return;
    list_groups(warp, e, i);
    bound(warp, e, i);
    warp.sync();
    if (e.params.target == Target::kStep) {
      warp.leader([&] { s.center = e.log2_value; });
      return;
    }
    const double center = solve_bits(warp, e, i, s.target_bits);
    warp.leader([&] { s.center = center; });
  }

 private:
  template <typename Warp>
  GCT_DEVICE static void list_groups(Warp& warp, const EncodeBatch& e, int64_t segment) {
    const int64_t* histogram = e.histogram + segment * e.group_slots;
    const bool by_class = e.params.allocation8 != 8;
    int64_t count = 0;
    for (int64_t base = 0; base < e.group_slots; base += kLanes) {
      typename Warp::template Lanes<int64_t> rank;
      warp.each([&](int lane) {
        rank[lane] = base + lane < e.group_slots && histogram[base + lane] > 0;
      });
      const int64_t more = warp.scan(&rank);
      warp.each([&](int lane) {
        const int64_t key = base + lane;
        if (key >= e.group_slots || histogram[key] == 0) return;
        Group& g = e.groups[segment * e.group_slots + count + rank[lane]];
        g.shape = static_cast<int32_t>(by_class ? key / kClasses : key);
        g.scale_class = static_cast<int32_t>(by_class ? key % kClasses + kMinClass : 0);
        g.numel = static_cast<double>(histogram[key]);
      });
      count += more;
    }
    warp.leader([&] { e.states[segment].num_groups = count; });
  }

  // As in csrc/cpu/rate.cpp and encode.cpp.
  template <typename Warp>
  GCT_DEVICE static void bound(Warp& warp, const EncodeBatch& e, int64_t i) {
    const BatchSegment& segment = e.segments[i];
    typename Warp::template Lanes<int> low, high;
    typename Warp::template Lanes<int64_t> cost;
    warp.each([&](int lane) {
      low[lane] = kMaxClass;
      high[lane] = kMinClass;
      for (int64_t r = lane; r < segment.num_runs; r += kLanes) {
        const RunState& run = e.run_states[segment.first_run + r];
        if (run.header.mode != RunMode::kCoded) continue;
        low[lane] = run.lowest < low[lane] ? run.lowest : low[lane];
        high[lane] = run.highest > high[lane] ? run.highest : high[lane];
        cost[lane] += run.class_cost;
      }
    });
    const int lowest = warp.fold(low, [](int a, int b) { return a < b ? a : b; });
    const int highest = warp.fold(high, [](int a, int b) { return a > b ? a : b; });
    const int64_t class_cost = warp.fold(cost, Plus());
    const int slope = 8 - e.params.allocation8;
    const double steepness = e.params.allocation8 / 16.0;
    const double fine[] = {slope * highest / 16.0 - 19.0, -124.0 - steepness * lowest};
    const double coarse[] = {slope * highest / 16.0 + 12.0, 125.0 - steepness * highest};
    warp.leader([&] {
      SegmentState& s = e.states[i];
      s.finest = fine[0] > fine[1] ? fine[0] : fine[1];
      s.coarsest = coarse[0] < coarse[1] ? coarse[0] : coarse[1];
      s.overhead = static_cast<double>(s.size) + static_cast<double>(class_cost) / (8 * 4096) +
                   static_cast<double>(s.num_pieces) * (0.75 * kLaneBytes + kPieceEntryBytes + 0.5);
      s.aim = kAim * static_cast<double>(segment.slot) - s.overhead;
      s.target_bits = s.aim > 0.125 ? 8 * s.aim : 1;
    });
  }
};

// Task: a step of the grid for one sampled block: its bits with each table that may be the
// cheapest, added up by run.
struct SampleBlock {
  GCT_HD static int64_t tasks(const EncodeBatch& e) {
    return e.num_segments * kSample * kCandidates;
  }

  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t task) {
    const int candidate = static_cast<int>(task % kCandidates);
    const int64_t stratum = task / kCandidates % kSample, i = task / kCandidates / kSample;
    const SegmentState& s = e.states[i];
    if (s.done) return;
    const int64_t begin = stratum * s.coded_blocks / kSample;
    const int64_t end = (stratum + 1) * s.coded_blocks / kSample;
    const int64_t block = first_live(warp, e, e.segments[i], begin, end);
    if (block < 0) return;
    const BlockPlace p = place_block(e, e.segments[i], block);
    const int c = class_of(e, p);
    const double log2_step = candidate_step(s, candidate);
    const RunCode& base = e.run_states[p.run].header.code;
    for (int offset = 0; offset < kTableOffsets; ++offset) {
      const int64_t bits =
          block_bits(warp, e, p, c, log2_step, run_code(e, log2_step, table_offset(offset), base));
      warp.leader([&] {
        warp.atomic_add(&e.sample_bits[(p.run * kCandidates + candidate) * kTableOffsets + offset],
                        bits);
      });
    }
    const double model = p.numel * model_rate(base.shape, ratio_at(e, c, log2_step));
    warp.leader([&] {
      warp.atomic_add(&e.sample_model[i * kCandidates + candidate], round_half_away(4096 * model));
    });
  }

 private:
  // The first block of [begin, end) that isn't a zero block, or -1.
  template <typename Warp>
  GCT_DEVICE static int64_t first_live(Warp& warp, const EncodeBatch& e, const BatchSegment& s,
                                       int64_t begin, int64_t end) {
    for (int64_t base = begin; base < end; base += kLanes) {
      typename Warp::template Lanes<bool> live;
      warp.each([&](int lane) {
        live[lane] = base + lane < end && class_of(e, place_block(e, s, base + lane)) != kZeroClass;
      });
      const uint32_t mask = warp.ballot(live);
      for (int lane = 0; lane < kLanes; ++lane)
        if ((mask >> lane & 1) != 0) return base + lane;
    }
    return -1;
  }

  // In 1/4096 bit.
  template <typename Warp>
  GCT_DEVICE static int64_t block_bits(Warp& warp, const EncodeBatch& e, const BlockPlace& p, int c,
                                       double log2_step, const RunCode& run) {
    Quantizer q = quantizer_at(e, p.run, p.local);
    BlockCode code;
    if (!prepare_block(run, c, log2_step, &code, &q)) return 0;
    const int64_t offset = e.runs[p.run].offset + p.local * kBlock;
    const EncodeTable& table = e.tables.encode[code.table];
    typename Warp::template Lanes<int64_t> bits;
    warp.each([&](int lane) {
      GCT_UNROLL
      for (int base = 0; base < kBlock; base += kLanes) {
        const int i = base + lane;
        if (i >= p.numel) continue;
        const Element x =
            quantize_element(load_float(e.data, e.dtype, offset + i), q, i, code.shift);
        bits[lane] += table.cost[x.symbol] + 4096 * code.shift;
        if (x.symbol == kEscapeSymbol)
          bits[lane] +=
              4096 * (1 + golomb_bits(static_cast<uint32_t>(x.excess), escape_order(code.table)));
      }
    });
    return warp.fold(bits, Plus());
  }
};

// Writes step and tables of a segment's runs for log2_step, with the table offsets that were
// cheapest on the sample at the nearest step of the grid.
template <typename Warp>
GCT_DEVICE void apply_step(Warp& warp, const EncodeBatch& e, int64_t i, double log2_step) {
  const BatchSegment& segment = e.segments[i];
  const SegmentState& s = e.states[i];
  int64_t nearest = round_half_away((log2_step - s.center) / kCandidateOctaves) + kCandidates / 2;
  nearest = nearest < 0 ? 0 : nearest >= kCandidates ? kCandidates - 1 : nearest;
  const double candidate = candidate_step(s, static_cast<int>(nearest));
  const double distance = log2_step - candidate;
  warp.each([&](int lane) {
    for (int64_t r = lane; r < segment.num_runs; r += kLanes) {
      RunHeader& h = e.run_states[segment.first_run + r].header;
      if (h.mode != RunMode::kCoded) continue;
      const int64_t* bits =
          e.sample_bits + ((segment.first_run + r) * kCandidates + nearest) * kTableOffsets;
      int best = 0;
      for (int offset = 1; offset < kTableOffsets; ++offset)
        if (bits[offset] < bits[best]) best = offset;
      h.code = run_code(e, log2_step, table_offset(best), h.code);
      // Within the grid the very tables: an offset to those of log2_step could be others.
      if (distance <= kCandidateOctaves / 2 && distance >= -kCandidateOctaves / 2)
        h.code.log2_ratio = run_code(e, candidate, table_offset(best), h.code).log2_ratio;
    }
  });
  warp.sync();  // all lanes have read what changes now
  warp.leader([&] {
    e.states[i].log2_step = log2_step;
    e.states[i].uncoded = 0;
  });
}

// Task: a segment. The step at which the sample says that it takes the bits it may.
struct ChooseStep {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t i) {
    const SegmentState& s = e.states[i];
    if (s.done) return;
    double log2_step = s.center;
    if (e.params.target == Target::kBits) log2_step = solve(warp, e, i);
    apply_step(warp, e, i, log2_step);
  }

 private:
  // The sample's bits over what the model gives for it; 1 where there is nothing to compare.
  GCT_DEVICE static double correction(const EncodeBatch& e, int64_t i, int candidate) {
    const BatchSegment& segment = e.segments[i];
    int64_t actual = 0;
    for (int64_t r = segment.first_run; r < segment.first_run + segment.num_runs; ++r) {
      const int64_t* bits = e.sample_bits + (r * kCandidates + candidate) * kTableOffsets;
      int64_t best = bits[0];
      for (int offset = 1; offset < kTableOffsets; ++offset)
        if (bits[offset] < best) best = bits[offset];
      actual += best;
    }
    const int64_t model = e.sample_model[i * kCandidates + candidate];
    return actual > 0 && model > 0 ? static_cast<double>(actual) / static_cast<double>(model) : 1;
  }

  // Each lane looks at a step of the grid; between the first that takes no more than it may and the
  // one before, the bits are a straight line.
  template <typename Warp>
  GCT_DEVICE static double solve(Warp& warp, const EncodeBatch& e, int64_t i) {
    static_assert(kCandidates <= kLanes);
    const SegmentState& s = e.states[i];
    typename Warp::template Lanes<double> factor, bits;
    typename Warp::template Lanes<bool> fits;
    warp.each([&](int lane) {
      if (lane >= kCandidates) return;
      factor[lane] = correction(e, i, lane);
      bits[lane] = factor[lane] * model_bits(e, i, candidate_step(s, lane));
      fits[lane] = bits[lane] <= s.target_bits;
    });
    const uint32_t mask = warp.ballot(fits);
    int first = 0;
    while (first < kCandidates && (mask >> first & 1) == 0) ++first;
    if (first == 0 || first == kCandidates) {  // outside the grid
      const int end = first == 0 ? 0 : kCandidates - 1;
      return clamp(s, solve_bits(warp, e, i, s.target_bits / warp.broadcast(factor, end)));
    }
    const double before = warp.broadcast(bits, first - 1), after = warp.broadcast(bits, first);
    const double share = (before - s.target_bits) / (before - after);
    return clamp(s, candidate_step(s, first) - kCandidateOctaves * (1 - share));
  }

  GCT_DEVICE static double clamp(const SegmentState& s, double step) {
    return step < s.finest ? s.finest : step > s.coarsest ? s.coarsest : step;
  }
};

}  // namespace gct::gpu
