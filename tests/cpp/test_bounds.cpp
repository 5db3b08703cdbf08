// How large things can become, at both ends: inputs that reach a bound, or come as close as stated,
// and none that passes it; the smallest inputs too. Sizes on the wire are docs/wire-format.md's.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "codec.h"
#include "core/wire.h"
#include "cpu/pieces.h"
#include "cpu/segment_sizes.h"
#include "inputs.h"

namespace gct {
namespace {

using test::describe;
using test::high_effort;
using test::Input;
using test::params;
using test::Random;
using test::raw_bytes;
using test::unit_gain;
using test::Values;

// ---- values that are hard to code

float finite_noise(Random* r) { return bits_float(static_cast<uint32_t>(r->bits()) & 0xff7fffffu); }

const std::vector<test::ValueKind>& hard_values() {
  static const std::vector<test::ValueKind> kinds = {
      {"any bits",
       [](int64_t, Random* r) {
         return static_cast<double>(bits_float(static_cast<uint32_t>(r->bits())));
       }},
      {"any finite bits", [](int64_t, Random* r) { return static_cast<double>(finite_noise(r)); }},
      {"mantissa bits", [](int64_t, Random* r) { return 1 + r->unit(); }},
      {"huge and tiny", [](int64_t i, Random*) { return i % 2 == 0 ? 1e36 : 1e-36; }},
      {"a scale for each",
       [](int64_t i, Random* r) {
         return std::ldexp(1 + r->unit(), static_cast<int>(i * 37 % 250) - 126);
       }},
      {"a scale for each block",
       [](int64_t i, Random* r) {
         return std::ldexp(test::gaussian(r), static_cast<int>(i / 256 * 37 % 200) - 100);
       }},
      {"spikes", [](int64_t i, Random* r) { return i % 256 == 9 ? 1e30 : test::gaussian(r); }},
      {"zeros", [](int64_t, Random*) { return 0.0; }},
      {"uniform", [](int64_t, Random* r) { return r->unit() - 0.5; }},
  };
  return kinds;
}

std::vector<CodecParams> settings() {
  std::vector<CodecParams> all = {params(Kind::kRaw, Target::kBits, 2)};
  for (int bits = 1; bits <= 8; ++bits) all.push_back(params(Kind::kFixed, Target::kBits, bits));
  for (Kind kind : {Kind::kGG, Kind::kEG}) {
    for (int allocation8 : {0, 8}) {
      for (double bits : {0.01, 2.0, 31.0, 64.0}) {
        all.push_back(params(kind, Target::kBits, bits, allocation8));
        all.push_back(unit_gain(all.back()));
      }
      for (double snr_db : {12.0, 150.0})
        all.push_back(params(kind, Target::kSnrDb, snr_db, allocation8));
      for (double step : {1e-30, 1e-6, 1.0})
        all.push_back(params(kind, Target::kStep, step, allocation8));
      all.push_back(params(kind, Target::kStep, 1e-6, allocation8, Rounding::kStochastic));
    }
  }
  for (int allocation8 : {0, 8}) {
    for (double bits : {0.01, 2.0, 31.0})
      all.push_back(high_effort(params(Kind::kGG, Target::kBits, bits, allocation8)));
    all.push_back(high_effort(params(Kind::kGG, Target::kSnrDb, 12, allocation8)));
    for (double step : {1e-6, 1.0})
      all.push_back(high_effort(params(Kind::kGG, Target::kStep, step, allocation8)));
  }
  return all;
}

// ---- encode() against max_segment_bytes() and slot_bytes()

size_t encoded_size(const std::string& name, const CodecParams& p, const Input& input) {
  static Workspace workspace;
  const size_t slot = slot_bytes(p, input.view);
  std::vector<uint8_t> out(slot);  // exactly: the address sanitizer sees a byte more
  size_t written = 0;
  const Status status = encode(p, input.view, out.data(), slot, &written, workspace);
  CHECK_IN(name, status == Status::kOk, static_cast<int>(status));
  CHECK_IN(name, written <= slot, written, slot);
  return written;
}

// No input takes more than raw data and 40 bytes and 24 for each run: 64 with one run.
void test_never_larger_than_raw() {
  const std::vector<std::vector<int64_t>> layouts = {{},
                                                     {0},
                                                     {1},
                                                     {2},
                                                     {255},
                                                     {256},
                                                     {257},
                                                     {5000},
                                                     {-70},
                                                     {300, -1, 0, 700, 1},
                                                     std::vector<int64_t>(1500, 1),
                                                     std::vector<int64_t>(700, 3)};
  int64_t reached = 0;
  for (const auto& lengths : layouts) {
    int64_t numel = 0;
    for (int64_t n : lengths) numel += std::abs(n);
    for (const test::ValueKind& kind : hard_values()) {
      for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        if (dtype == DType::kBFloat16 && lengths.size() > 5) continue;  // slow, and nothing new
        const Input input(test::make_values(kind, dtype, numel, 1), lengths);
        const size_t most = 40 + 24 * lengths.size() + raw_bytes(input);
        for (const CodecParams& p : settings()) {
          const std::string name = std::string(kind.name) + ", " + describe(p);
          CHECK_IN(name, max_segment_bytes(p, input.view) == most, most);
          const size_t size = encoded_size(name, p, input);
          CHECK_IN(name, size <= most, size, most);
          if (lengths.size() == 1) CHECK_IN(name, size <= raw_bytes(input) + 64, size);
          // Kinds that would have to be larger go raw, each of them.
          if (p.target == Target::kStep && size == most && numel >= 5000) ++reached;
        }
      }
    }
  }
  CHECK(reached >= 20, reached);
}

// The target in bits. The rate control aims 1.4 % under the slot, so 22 bytes here, and misses by
// as much: among 120 segments, and 60 of the trellis', one is within 16 bytes of the slot, and none
// over it.
void test_slots_are_used() {
  const CodecParams gg = params(Kind::kGG, Target::kBits, 3);
  const std::vector<CodecParams> plain = {gg, params(Kind::kEG, Target::kBits, 3)};
  for (const std::vector<CodecParams>& settings : {plain, {high_effort(gg)}}) {
    size_t closest = SIZE_MAX;
    for (uint64_t seed = 1; seed <= 60; ++seed) {
      const Input input(test::make_values(test::value_kinds()[4], DType::kFloat32, 4096, seed),
                        {4096});
      for (const CodecParams& p : settings)
        closest = std::min(closest, slot_bytes(p, input.view) - encoded_size("slots", p, input));
    }
    CHECK_IN(describe(settings.back()), closest <= 16, closest);
  }
}

// Raw runs and headers come out of the target, but the coded runs keep three quarters of theirs:
// beside as many raw elements, a bit of the target is 3/4 of a bit for each coded one.
void test_coded_runs_keep_their_share() {
  const Input input(test::make_values(test::value_kinds()[0], DType::kFloat32, 8000, 1),
                    {4000, -4000});
  for (Kind kind : {Kind::kGG, Kind::kEG}) {
    const size_t one = slot_bytes(params(kind, Target::kBits, 1), input.view);
    for (int bits : {2, 3, 4}) {
      const size_t more = slot_bytes(params(kind, Target::kBits, bits), input.view);
      CHECK(more - one == static_cast<size_t>(bits - 1) * 4000 / 8 * 3 / 4, bits, more - one);
    }
    // 88 of headers, and a piece.
    const size_t fixed = 88 + 4 * 4000 + kPieceOverheadBytes;
    CHECK(one == fixed + 375, one, fixed);
  }
  // Where they take less than a quarter, the target is met.
  const Input few(test::make_values(test::value_kinds()[0], DType::kFloat32, 8000, 1), {7990, -10});
  CHECK(slot_bytes(params(Kind::kGG, Target::kBits, 2), few.view) == 2000);
}

// Kind fixed takes what is promised, to the byte, from no element on.
void test_fixed_is_exact() {
  for (int bits = 1; bits <= 8; ++bits) {
    for (int64_t numel : {1, 2, 7, 8, 9, 255, 256, 257, 511, 513, 1000}) {
      const Input input(test::make_values(test::value_kinds()[0], DType::kFloat32, numel, 1),
                        {numel});
      const CodecParams p = params(Kind::kFixed, Target::kBits, bits);
      const size_t codes =
          static_cast<size_t>(numel / 256 * 32 * bits + (numel % 256 * bits + 7) / 8);
      const size_t expected =
          std::min<size_t>(64 + 2 * static_cast<size_t>((numel + 255) / 256) + codes,
                           64 + 4 * static_cast<size_t>(numel));
      CHECK(slot_bytes(p, input.view) == expected, bits, numel, expected);
      CHECK(encoded_size("fixed", p, input) == expected, bits, numel, expected);
    }
  }
}

// ---- pieces

SegmentLayout layout_of(const std::vector<uint8_t>& wire) {
  SegmentLayout layout;
  CHECK(read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  return layout;
}

std::vector<uint8_t> encode_all(const CodecParams& p, const Input& input, Workspace* workspace) {
  std::vector<uint8_t> wire(max_segment_bytes(p, input.view));
  size_t written = 0;
  CHECK(encode(p, input.view, wire.data(), wire.size(), &written, *workspace) == Status::kOk);
  wire.resize(written);
  return wire;
}

// kPieceOverheadBytes: that much holds a piece whose symbols are all zero, whatever its blocks are:
// there is always a step at which the target is met. A block of its own for each run is the worst.
void test_zeros_fit() {
  for (int64_t length : {1, 256, 65536}) {
    const std::vector<int64_t> lengths(static_cast<size_t>(length == 65536 ? 2 : 512), length);
    const int64_t numel = length * static_cast<int64_t>(lengths.size());
    const CodecParams gg = params(Kind::kGG, Target::kStep, 1e9, 0);
    for (CodecParams p : {gg, high_effort(gg), params(Kind::kEG, Target::kStep, 1e9, 0)}) {
      for (const char* name : {"scales", "normal"}) {
        const auto& kinds = test::value_kinds();
        const auto values = std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) {
          return std::strcmp(k.name, name) == 0;
        });
        const Input input(test::make_values(*values, DType::kFloat32, numel, 1), lengths);
        Workspace workspace;
        const SegmentLayout layout = layout_of(encode_all(p, input, &workspace));
        const int64_t pieces = layout.header.num_pieces;
        const int64_t bytes =
            layout.header.size_bytes - static_cast<int64_t>(layout.payload_offset);
        CHECK_IN(name, pieces == 2, pieces);
        CHECK_IN(name, bytes <= pieces * kPieceOverheadBytes, bytes, pieces * kPieceOverheadBytes);
        // Within the 16 bytes that are set aside for classes, and eg has no lanes.
        const int64_t fixed = kPieceEntryBytes + (p.kind == Kind::kGG ? kLaneBytes : 0);
        CHECK_IN(name, bytes >= pieces * fixed, bytes, pieces * fixed);
      }
    }
  }
}

// The room for a piece's words: one a symbol and class, which is what the coder's step writes at
// most. A symbol takes 12 bits at most, so no piece can use more than 3/4 of it; a block's mean
// sees to it that not all of its symbols are as rare, and a fifth is the most that was found.
void test_room_for_words() {
  Values spikes;  // 20 octaves in each block
  Random random(2);
  for (int i = 0; i < 65536; ++i)
    spikes.push(std::ldexp(1 + random.unit(), static_cast<int>(random.below(20))));
  const Input input(spikes, {65536});
  double most = 0;
  for (double step : {1e-3, 1e-2, 1e-1, 1.0}) {
    const CodecParams relative = params(Kind::kGG, Target::kStep, step, 8);
    for (CodecParams p :
         {relative, high_effort(relative), params(Kind::kGG, Target::kStep, step, 0)}) {
      Workspace workspace;
      encode_all(p, input, &workspace);
      for (const PieceOutput& piece : workspace.outputs()) {
        const double room = 256.0 * (kBlock + 1);
        CHECK(static_cast<double>(piece.num_words()) <= room, piece.num_words());
        CHECK(piece.words.size() == 256 * (kBlock + 1) + kLanes, piece.words.size());
        most = std::max(most, static_cast<double>(piece.num_words()) / room);
      }
    }
  }
  CHECK(most > 0.2 && most <= 0.75, most);
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_never_larger_than_raw();
  gct::test_slots_are_used();
  gct::test_coded_runs_keep_their_share();
  gct::test_fixed_is_exact();
  gct::test_zeros_fit();
  gct::test_room_for_words();
  return gct::test::result();
}
