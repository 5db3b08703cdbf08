// Kernels' bodies: extra bits and rANS of kind gg, a warp for a piece; whether the sizes fit; and
// the segment as it goes on the wire.
#pragma once

#include "cuda/rate.h"

namespace gct::gpu {

// Extra bits of a piece: every lane keeps the same state, one writes. Past its room it only counts.
template <typename Warp>
class PieceSink {
 public:
  GCT_DEVICE PieceSink(Warp* warp, uint8_t* data) : warp_(warp), data_(data) {}
  GCT_DEVICE void operator()(uint8_t byte) {
    if (size_ < kPieceExtra) warp_->leader([&] { data_[size_] = byte; });
    ++size_;
  }
  GCT_DEVICE int64_t size() const { return size_; }

 private:
  Warp* warp_;
  uint8_t* data_;
  int64_t size_ = 0;
};

template <typename Warp>
class PieceEncoder {
 public:
  GCT_DEVICE PieceEncoder(Warp& warp, const EncodeBatch& batch, int64_t piece,
                          const PiecePlace& place)
      : warp_(warp),
        e_(batch),
        segment_(batch.segments[place.segment]),
        state_(batch.states[place.segment]),
        place_(place),
        piece_(piece),
        notes_(batch.notes + segment_.first_block + place.begin),
        symbols_(batch.symbols + piece * kPieceSymbols),
        end_(batch.words + (piece + 1) * kPieceWords),
        extra_(PieceSink<Warp>(&warp, batch.extra + piece * kPieceExtra)) {}

  GCT_DEVICE void run() {
    note_classes();
    warp_.sync();
    for (int64_t b = place_.begin; b < place_.end; ++b)
      if (notes_[b - place_.begin].extra) put_extras(b);
    extra_.finish();
    warp_.sync();
    warp_.each([&](int lane) { states_[lane] = kRansLow; });
    const int count = static_cast<int>(place_.end - place_.begin);
    for (int b = count - 1; b >= 0; --b) code_block(b);
    for (int base = (count - 1) / kLanes * kLanes; base >= 0; base -= kLanes)
      code_classes(base, count);
    finish();
  }

 private:
  using Flags = typename Warp::template Lanes<bool>;
  using Entries = typename Warp::template Lanes<EncodeEntry>;

  GCT_DEVICE void note_classes() {
    ClassWalk<Warp> walk(warp_, e_, segment_);
    for (int64_t base = place_.begin; base < place_.end; base += kLanes) {
      walk.next(base, place_.end);
      Flags escaped;
      warp_.each([&](int lane) {
        escaped[lane] = walk.present[lane] && walk.symbol[lane] == kClassEscape;
        if (!walk.present[lane]) return;
        BlockNote& note = notes_[base - place_.begin + lane];
        note.class_symbol = static_cast<uint8_t>(walk.symbol[lane]);
        note.model = e_.run_states[walk.place[lane].run].header.model;
      });
      const uint32_t mask = warp_.ballot(escaped);
      for (int lane = 0; lane < kLanes; ++lane)
        if ((mask >> lane & 1) != 0)
          put_golomb(&extra_, zigzag(warp_.broadcast(walk.delta, lane)), 3);
    }
  }

  // The extra bits of a block that has some; its elements are quantized once more.
  GCT_DEVICE void put_extras(int64_t b) {
    const BlockPlace p = place_block(e_, segment_, b);
    Quantizer q = quantizer_at(e_, p.run, p.local);
    BlockCode code;
    const RunCode& run = e_.run_states[p.run].header.code;
    if (!prepare_block(run, class_of(e_, p), state_.log2_step, &code, &q)) return;
    const int64_t offset = e_.runs[p.run].offset + p.local * kBlock;
    for (int base = 0; base < p.numel; base += kLanes) {
      typename Warp::template Lanes<int32_t> value, excess;
      Flags escaped;
      warp_.each([&](int lane) {
        const int i = base + lane;
        if (i >= p.numel) return;
        const Element x =
            quantize_element(load_float(e_.data, e_.dtype, offset + i), q, i, code.shift);
        value[lane] = x.value;
        excess[lane] = x.excess;
        escaped[lane] = x.symbol == kEscapeSymbol;
      });
      const uint32_t mask = warp_.ballot(escaped);
      if (mask == 0 && code.shift == 0) continue;
      const int n = p.numel - base < kLanes ? p.numel - base : kLanes;
      for (int lane = 0; lane < n; ++lane)
        put_extra(warp_.broadcast(value, lane), (mask >> lane & 1) != 0,
                  warp_.broadcast(excess, lane), code);
    }
  }

  // One element's extra bits; as csrc/cpu/block_symbols.h.
  GCT_DEVICE void put_extra(int32_t value, bool escaped, int32_t excess, const BlockCode& code) {
    const int32_t half = code.shift > 0 ? 1 << (code.shift - 1) : 0;
    if (escaped) {
      extra_.put((value + half) >> code.shift < 0 ? 1 : 0, 1);
      put_golomb(&extra_, static_cast<uint32_t>(excess), escape_order(code.table));
    }
    extra_.put(static_cast<uint32_t>(value + half) & ((1u << code.shift) - 1), code.shift);
  }

  // A symbol on every active lane. Words of one step stand in lane order, the highest lane's last.
  GCT_DEVICE void put(const Entries& entry, const Flags& active) {
    Flags full;
    warp_.each(
        [&](int lane) { full[lane] = active[lane] && rans_full(states_[lane], entry[lane]); });
    const uint32_t mask = warp_.ballot(full);
    warp_.each([&](int lane) {
      if (full[lane]) {
        *(end_ - count_bits(mask >> lane)) = static_cast<uint16_t>(states_[lane]);
        states_[lane] >>= 16;
      }
      if (active[lane]) states_[lane] = rans_push(states_[lane], entry[lane]);
    });
    end_ -= count_bits(mask);
  }

  GCT_DEVICE void code_block(int b) {
    const BlockNote note = notes_[b];
    if (note.table < 0) return;
    const EncodeTable& table = e_.tables.encode[note.table];
    const uint8_t* symbols = symbols_ + int64_t{b} * kBlock;
    constexpr int kSteps = kBlock / kLanes;
    Entries entry[kSteps];
    GCT_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      warp_.each([&](int lane) {
        const int i = step * kLanes + lane;
        if (i < note.numel) entry[step][lane] = table.entry[symbols[i]];
      });
    }
    GCT_UNROLL
    for (int step = kSteps - 1; step >= 0; --step) {
      if (step * kLanes >= note.numel) continue;
      Flags active;
      warp_.each([&](int lane) { active[lane] = step * kLanes + lane < note.numel; });
      put(entry[step], active);
    }
  }

  GCT_DEVICE void code_classes(int base, int count) {
    Entries entry;
    Flags active;
    warp_.each([&](int lane) {
      active[lane] = base + lane < count;
      if (!active[lane]) return;
      const BlockNote& note = notes_[base + lane];
      entry[lane] = e_.tables.class_encode[note.model].entry[note.class_symbol];
    });
    put(entry, active);
  }

  GCT_DEVICE void finish() {
    PieceState& s = e_.pieces[piece_];
    warp_.each([&](int lane) { s.states[lane] = states_[lane]; });
    warp_.leader([&] {
      s.num_words = static_cast<uint32_t>(e_.words + (piece_ + 1) * kPieceWords - end_);
      s.extra_bytes = static_cast<uint32_t>(extra_.sink().size());
      s.overflow = extra_.sink().size() > kPieceExtra;
    });
  }

  Warp& warp_;
  const EncodeBatch& e_;
  const BatchSegment& segment_;
  const SegmentState& state_;
  const PiecePlace place_;
  const int64_t piece_;
  BlockNote* notes_;
  uint8_t* symbols_;
  uint16_t* end_;  // words are written downwards from here
  BasicBitWriter<PieceSink<Warp>> extra_;
  typename Warp::template Lanes<uint32_t> states_;
};

// Task: a piece.
struct EncodePiece {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t piece) {
    const PiecePlace place = place_piece(e, piece);
    if (e.states[place.segment].done || place.begin >= place.end) return;
    PieceEncoder<Warp>(warp, e, piece, place).run();
  }
};

// Encodings that are launched, whether or not the first one fits; all but that are usually empty.
constexpr int kAttempts = 6;

// Task: a segment. Places the pieces, and ends the attempts or chooses another step, as
// SegmentEncoder in csrc/cpu/encode.cpp does. The last attempt is at the best step known to fit, or
// at one where all symbols are zero.
struct JudgeSize {
  template <typename Warp>
  GCT_DEVICE static void run(Warp& warp, const EncodeBatch& e, int64_t i) {
    SegmentState& s = e.states[i];
    if (s.done) return;
    const BatchSegment& segment = e.segments[i];
    const int64_t raw = s.raw_numel * raw_type_bytes(raw_type_of(e.dtype));
    const int64_t size = place_pieces(warp, e, segment, s) + raw;
    const int64_t all_raw = all_raw_bytes(e, segment);
    const int64_t room = segment.slot < all_raw ? segment.slot : all_raw;
    const bool fits = size <= room && s.uncoded == 0;
    warp.sync();
    if (e.params.target == Target::kStep) {
      warp.leader([&] {
        s.done = 1;
        s.as_raw = !fits;
        s.size = fits ? size : all_raw;
      });
      return;
    }
    const int attempt = s.attempt;
    const double overhead = s.overhead, log2_step = s.log2_step;
    const Trial trial = {true, log2_step, static_cast<double>(size) - overhead};
    const Trial fine = fits ? s.fine : trial, coarse = fits ? trial : s.coarse;
    const double factor = s.aim / (trial.size > 1 ? trial.size : 1);
    const double least = (kAcceptFrom - kPatience * attempt) * static_cast<double>(segment.slot);
    // Data that no step makes large enough (one magnitude, a few values) stay under their target.
    const bool hopeless = factor > 4 && !fine.known;
    const bool enough = fits && (static_cast<double>(size) >= least || hopeless);
    if (enough || attempt + 1 == kAttempts) return end(warp, e, i, fits, size);
    const double next = attempt + 2 == kAttempts
                            ? (coarse.known ? coarse.log2_step : s.coarsest)
                            : next_step(warp, e, i, fits, fine, coarse, factor);
    apply_step(warp, e, i, next);
    warp.leader([&] {
      s.fine = fine;
      s.coarse = coarse;
      s.attempt = attempt + 1;
    });
  }

 private:
  // Bytes up to the raw data. A piece that had no room counts as more than there ever is.
  template <typename Warp>
  GCT_DEVICE static int64_t place_pieces(Warp& warp, const EncodeBatch& e,
                                         const BatchSegment& segment, const SegmentState& s) {
    int64_t at = header_bytes(segment) + static_cast<int64_t>(kPieceEntryBytes) * s.num_pieces;
    for (int64_t base = 0; base < s.num_pieces; base += kLanes) {
      typename Warp::template Lanes<int64_t> bytes;
      warp.each([&](int lane) {
        if (base + lane >= s.num_pieces) return;
        const PieceState& p = e.pieces[segment.first_piece + base + lane];
        bytes[lane] = static_cast<int64_t>(kLaneBytes) + 2 * int64_t{p.num_words} + p.extra_bytes +
                      (p.overflow ? kMaxNumel : 0);
      });
      const int64_t more = warp.scan(&bytes);
      warp.each([&](int lane) {
        if (base + lane < s.num_pieces)
          e.pieces[segment.first_piece + base + lane].at = at + bytes[lane];
      });
      at += more;
    }
    return at;
  }

  template <typename Warp>
  GCT_DEVICE static double next_step(Warp& warp, const EncodeBatch& e, int64_t i, bool fits,
                                     const Trial& fine, const Trial& coarse, double factor) {
    const SegmentState& s = e.states[i];
    if (fine.known && coarse.known) {
      double share = (fine.size - s.aim) / (fine.size - coarse.size);
      share = share < 0.1 ? 0.1 : share > 0.9 ? 0.9 : share;
      return fine.log2_step + share * (coarse.log2_step - fine.log2_step);
    }
    const double now = model_bits(e, i, s.log2_step);
    const double change = solve_bits(warp, e, i, factor * now) - s.log2_step;
    // Where the model doesn't get under the slot, more of it does, or ever larger steps.
    const double stuck[] = {-1e3, 2 * change + 0.02, 0.125, 0.5, 2};
    const double least = fits ? -1e3 : stuck[s.attempt < 4 ? s.attempt : 4];
    const double next = s.log2_step + (change > least ? change : least);
    return next < s.coarsest ? next : s.coarsest;  // beyond, large blocks have no code
  }

  // The last attempt always fits as far as we know. If it doesn't: a NaN is loud, zeros wouldn't
  // be.
  template <typename Warp>
  GCT_DEVICE static void end(Warp& warp, const EncodeBatch& e, int64_t i, bool fits, int64_t size) {
    const BatchSegment& segment = e.segments[i];
    warp.each([&](int lane) {
      for (int64_t r = lane; r < segment.num_runs && !fits; r += kLanes) {
        RunHeader& h = e.run_states[segment.first_run + r].header;
        if (h.mode == RunMode::kCoded) h.mode = RunMode::kNonFinite;
      }
    });
    warp.sync();  // all lanes have read what changes now
    warp.leader([&] {
      SegmentState& s = e.states[i];
      s.done = 1;
      if (!fits) s.coded_blocks = s.num_pieces = 0;
      s.size =
          fits ? size : header_bytes(segment) + s.raw_numel * raw_type_bytes(raw_type_of(e.dtype));
    });
  }
};

}  // namespace gct::gpu
