// Damaged segments by the hundred thousand: decode() gives an error or values, and with the
// sanitizers (make sanitize) no access outside the input or the output goes unseen: both lie in
// heap blocks of exactly their size. No field makes it allocate more than the segment and the
// output account for. The damage is the same in every run.
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "check.h"
#include "codec.h"
#include "core/bit_io.h"
#include "core/wire.h"
#include "cpu/kernels.h"
#include "cpu/trellis.h"

namespace {

size_t largest_allocation = 0;

}  // namespace

void* operator new(size_t size) {
  largest_allocation = std::max(largest_allocation, size);
  void* p = std::malloc(size);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace {

using gct::Status;
using gct::test::Random;
using Bytes = std::vector<uint8_t>;

constexpr int kDamaged = 200000;        // each is decoded up to four times
constexpr int64_t kMaxNumel = 1 << 20;  // what the test is ready to hold; 64 bytes may say 2^48

// ---- sound segments

// Peaked, with heavy tails; every 100th is a spike, which takes escapes or low bits.
std::vector<float> gradient_like(int64_t numel, Random& random) {
  std::vector<float> x(static_cast<size_t>(numel));
  for (float& v : x) {
    v = static_cast<float>((random.unit() - 0.5) * random.unit() * random.unit());
    if (random.below(100) == 0) v *= 1e5f;
  }
  return x;
}

Bytes encode(const gct::CodecParams& params, const std::vector<std::vector<float>>& values,
             int64_t columns = 0) {
  std::vector<gct::Run> runs;
  for (const std::vector<float>& x : values) {
    gct::Run run;
    run.data = x.data();
    run.numel = static_cast<int64_t>(x.size());
    run.raw = runs.size() % 4 == 3;
    run.columns = columns;
    runs.push_back(run);
  }
  gct::EncodeInput input;
  input.runs = runs.data();
  input.num_runs = static_cast<int64_t>(runs.size());
  Bytes wire(gct::max_segment_bytes(params, input));
  size_t written = 0;
  gct::Workspace workspace;
  const Status status =
      gct::encode(params, input, wire.data(), wire.size(), &written, workspace, nullptr);
  CHECK(status == Status::kOk, static_cast<int>(status));
  wire.resize(written);
  return wire;
}

// One run; several with all modes among them; two pieces.
std::vector<std::vector<std::vector<float>>> make_inputs(Random& random) {
  std::vector<std::vector<float>> several;
  for (int64_t numel : {700, 0, 257, 10, 1, 300}) several.push_back(gradient_like(numel, random));
  several.emplace_back(40);                                    // zeros
  several.emplace_back(40, 3e38f * static_cast<float>(1e30));  // infinities
  for (int i = 0; i < 300; ++i) several[4].push_back(i % 7 == 0 ? 1e-30f : 0.0f);
  return {{gradient_like(300, random)}, several, {gradient_like(66000, random)}};
}

// A run with a column profile and one too short for it.
Bytes profiled_segment(gct::Kind kind, Random& random) {
  constexpr int64_t kColumns = 50;
  std::vector<std::vector<float>> values = {gradient_like(80 * kColumns + 20, random),
                                            gradient_like(300, random)};
  for (size_t i = 0; i < values[0].size(); ++i)
    values[0][i] *= static_cast<float>(1u << (i % kColumns % 12));
  gct::CodecParams params;
  params.kind = kind;
  params.value = 4;
  params.allocation8 = 0;
  const Bytes wire = encode(params, values, kColumns);
  gct::SegmentLayout layout;
  CHECK(gct::read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  CHECK(layout.profile_columns == kColumns, layout.profile_columns);
  return wire;
}

// Runs with low-rank parts, cut anywhere, beside others; coarse enough that the factors are a good
// part of the bytes.
Bytes low_rank_segment(gct::Kind kind, Random& random) {
  constexpr int64_t kColumns = 70;
  std::vector<float> right(2 * kColumns), left(2 * 100);
  for (std::vector<float>* factor : {&right, &left}) {
    for (float& v : *factor) v = static_cast<float>(random.unit() - 0.5);
  }
  const auto matrix = [&](size_t numel) {
    std::vector<float> x(numel);
    for (size_t i = 0; i < numel; ++i) {
      const float* l = &left[2 * (i / kColumns)];
      const float* r = &right[2 * (i % kColumns)];
      x[i] = static_cast<float>(1e-2 * (random.unit() - 0.5)) + l[0] * r[0] + l[1] * r[1];
    }
    return x;
  };
  gct::CodecParams params;
  params.kind = kind;
  params.value = 3;
  params.allocation8 = 0;
  params.max_rank = 16;
  const Bytes wire = encode(params, {matrix(5000), {1, 2, 3}, matrix(4500), {4, 5}}, kColumns);
  gct::SegmentLayout layout;
  CHECK(gct::read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  CHECK(layout.low_rank.parts.size() == 2, layout.low_rank.parts.size());
  return wire;
}

std::vector<Bytes> make_segments(Random& random) {
  std::vector<Bytes> segments;
  for (const auto& input : make_inputs(random)) {
    for (gct::Kind kind : {gct::Kind::kRaw, gct::Kind::kGG, gct::Kind::kEG, gct::Kind::kFixed,
                           gct::Kind::kGG, gct::Kind::kGG}) {
      gct::CodecParams params;
      params.kind = kind;
      params.value = static_cast<double>(2 + 2 * random.below(3));
      params.allocation8 = static_cast<int>(8 * random.below(2));
      if (kind == gct::Kind::kEG) params.rounding = gct::Rounding::kStochastic;
      const size_t turn = segments.size() % 6;  // the second and the third of kind gg
      if (turn == 4) params.effort = gct::Effort::kHigh;
      if (turn == 5) params.reconstruction = gct::Reconstruction::kUnitGain;
      segments.push_back(encode(params, input));
    }
  }
  for (gct::Kind kind : {gct::Kind::kGG, gct::Kind::kEG}) {
    segments.insert(segments.begin(), low_rank_segment(kind, random));
    segments.insert(segments.begin(), profiled_segment(kind, random));
  }
  return segments;
}

// ---- damage

// Where a field of the headers begins, or of low-rank parts after four runs, or any byte.
size_t any_offset(const Bytes& wire, Random& random) {
  constexpr size_t kFields[] = {0,   4,   5,   6,   7,   8,   12,  16,  24,  32,  36,
                                37,  38,  40,  48,  52,  54,  56,  57,  58,  59,  60,
                                64,  68,  84,  88,  92,  136, 140, 144, 148, 152, 156,
                                164, 168, 172, 176, 180, 184, 188, 192, 196};
  const size_t at = random.below(2) == 0 ? random.below(wire.size())
                                         : kFields[random.below(sizeof kFields / sizeof *kFields)];
  return at < wire.size() ? at : wire.size() - 1;
}

// An extreme number, or one near a small one, over up to 8 bytes.
void overwrite_number(Bytes* wire, size_t at, Random& random) {
  const uint64_t number = random.below(2) == 0 ? (uint64_t{1} << random.below(64)) - random.below(2)
                                               : random.below(300);
  const size_t width = size_t{1} << random.below(4);
  for (size_t i = 0; i < width && at + i < wire->size(); ++i)
    (*wire)[at + i] = static_cast<uint8_t>(number >> (8 * i));
}

// Another length, and a header that agrees with it half of the time.
void resize(Bytes* wire, Random& random) {
  wire->resize(random.below(wire->size() + 40), static_cast<uint8_t>(random.bits()));
  if (wire->size() < gct::kSegmentHeaderBytes || random.below(2) == 0) return;
  gct::store_le<uint64_t>(wire->data() + 24, wire->size());
}

void damage(Bytes* wire, const std::vector<Bytes>& others, Random& random) {
  if (wire->empty()) return;
  const size_t at = any_offset(*wire, random);
  switch (random.below(6)) {
    case 0:
    case 1:
      (*wire)[at] = static_cast<uint8_t>((*wire)[at] ^ (1u << random.below(8)));
      break;
    case 2:
      overwrite_number(wire, at, random);
      break;
    case 3:
      resize(wire, random);
      break;
    case 4:  // the rest of another segment
      for (size_t i = at, end = wire->size(); i < end; ++i) {
        const Bytes& other = others[at % others.size()];
        if (i < other.size()) (*wire)[i] = other[i];
      }
      break;
    default:
      for (size_t i = at; i < wire->size() && i < at + 16; ++i)
        (*wire)[i] = static_cast<uint8_t>(random.bits());
  }
}

// ---- checks

struct Outcome {
  Status status;
  std::vector<uint32_t> bits;  // of the values, if there are any
  bool operator==(const Outcome& o) const { return status == o.status && bits == o.bits; }
};

// What decoding may allocate in one block. By byte of the segment: an entry of the piece table
// becomes 48 bytes and vectors double, a run with columns gets 256 bytes more of them. By element:
// both factors of a run, and of one of them a copy.
size_t most_allocated(size_t wire_bytes, size_t numel) {
  return 4096 + 32 * wire_bytes + 8 * numel;
}

// Tables of shapes and models are made once, when they are needed first: here.
void make_tables() {
  for (int shape = 0; shape < gct::tables::kNumShapes; ++shape) {
    gct::decode_tables(shape);
    for (int set = 0; set < gct::kLevelSets; ++set) gct::level_tables(shape, set);
    gct::trellis_decode_tables(shape);
    gct::trellis_level_tables(shape);
  }
  for (int model = 0; model < gct::tables::kNumClassModels; ++model) gct::class_decode_table(model);
}

// Decodes from and to blocks of exactly the sizes that are passed on.
Outcome decode_exactly(const Bytes& wire, int64_t numel, bool accumulate) {
  std::unique_ptr<uint8_t[]> input(new uint8_t[wire.size()]);
  for (size_t i = 0; i < wire.size(); ++i) input[i] = wire[i];
  const size_t count = static_cast<size_t>(numel);
  std::unique_ptr<float[]> output(new float[count]());
  gct::Workspace workspace;
  largest_allocation = 0;
  Outcome outcome{gct::decode(input.get(), wire.size(), output.get(), numel, accumulate, workspace),
                  {}};
  CHECK(largest_allocation <= most_allocated(wire.size(), count), largest_allocation, wire.size(),
        numel);
  if (outcome.status != Status::kOk) return outcome;
  for (size_t i = 0; i < count; ++i) {
    const bool nan = output[i] != output[i];
    outcome.bits.push_back(nan ? 0x7fc00000u : gct::float_bits(output[i]));
  }
  return outcome;
}

class Tester {
 public:
  std::map<Status, int> seen;

  void test(const Bytes& wire) {
    gct::SegmentInfo info;
    const Status header = gct::inspect(wire.data(), wire.size(), &info);
    if (header != Status::kOk) {
      ++seen[header];
      CHECK(decode_exactly(wire, 100, false).status == header, static_cast<int>(header));
      return;
    }
    if (info.numel > kMaxNumel) return;
    ++seen[decode_exactly(wire, info.numel + 1, false).status];
    const Outcome first = decode_on(0, wire, info.numel, false);
    ++seen[first.status];
    for (size_t i = 1; i < names_.size(); ++i)
      CHECK(decode_on(i, wire, info.numel, false) == first, i, info.numel);
    CHECK(decode_on(0, wire, info.numel, true).status == first.status, info.numel);
  }

 private:
  Outcome decode_on(size_t implementation, const Bytes& wire, int64_t numel, bool accumulate) {
    gct::set_implementation(names_[implementation]);
    return decode_exactly(wire, numel, accumulate);
  }

  const std::vector<std::string> names_ = gct::implementations();
};

void test_sound_segments(const std::vector<Bytes>& segments, Tester& tester) {
  for (const Bytes& wire : segments) tester.test(wire);
  CHECK(tester.seen[Status::kOk] == static_cast<int>(segments.size()), tester.seen[Status::kOk]);
}

void test_damaged_segments(const std::vector<Bytes>& segments, Random& random, Tester& tester) {
  for (int i = 0; i < kDamaged; ++i) {
    // The long ones, last in the list, take their turn seldom: they take long.
    const size_t usual = segments.size() * 2 / 3;
    Bytes wire = segments[random.below(i % 200 == 0 ? segments.size() : usual)];
    for (size_t n = random.below(3) + 1; n > 0; --n) damage(&wire, segments, random);
    tester.test(wire);
  }
  for (Status status :
       {Status::kOk, Status::kBadMagic, Status::kBadVersion, Status::kBadTables, Status::kBadHeader,
        Status::kTruncated, Status::kCorrupt, Status::kSizeMismatch})
    CHECK(tester.seen[status] > kDamaged / 1000, static_cast<int>(status), tester.seen[status]);
}

Status status_of(const Bytes& wire) {
  gct::SegmentInfo info;
  const Status header = gct::inspect(wire.data(), wire.size(), &info);
  return header != Status::kOk ? header : decode_exactly(wire, info.numel, false).status;
}

// ---- pieces whose words end long before their blocks

// The segment with `keep` words a piece and no extra bits.
Bytes cut_words(const Bytes& wire, uint32_t keep) {
  gct::SegmentLayout layout;
  CHECK(gct::read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  const size_t pieces = layout.header.num_pieces, table = layout.payload_offset;
  size_t at = table + gct::kPieceEntryBytes * pieces;
  Bytes cut(wire.begin(), wire.begin() + static_cast<std::ptrdiff_t>(at));
  for (size_t i = 0; i < pieces; ++i) {
    const size_t entry = table + gct::kPieceEntryBytes * i;
    const uint32_t words = gct::load_le<uint32_t>(&wire[entry]);
    const auto begin = wire.begin() + static_cast<std::ptrdiff_t>(at);
    CHECK(keep < words, keep, words);
    cut.insert(cut.end(), begin, begin + static_cast<std::ptrdiff_t>(gct::kLaneBytes + 2 * keep));
    at += gct::kLaneBytes + 2 * words + gct::load_le<uint32_t>(&wire[entry + 4]);
    gct::store_le<uint32_t>(&cut[entry], keep);
    gct::store_le<uint32_t>(&cut[entry + 4], 0);
  }
  gct::store_le<uint64_t>(&cut[24], cut.size());
  return cut;
}

// Long enough that a decoder which went on would leave the zeros behind its last words; without
// escapes, whose missing bits would end it before.
void test_words_that_end_early(Random& random, Tester& tester) {
  for (const bool low_bits : {false, true}) {
    for (const bool high : {false, true}) {
      for (const int64_t columns : {0, 64}) {
        gct::CodecParams params;
        params.value = low_bits ? 9 : 3;
        params.allocation8 = 0;
        if (high) params.effort = gct::Effort::kHigh;
        std::vector<float> values(131072);
        for (size_t i = 0; i < values.size(); ++i)
          values[i] = static_cast<float>((random.unit() - 0.5) * (columns > 0 ? 1 << i % 4 : 1));
        const Bytes wire = encode(params, {values}, columns);
        for (uint32_t keep : {1u, 300u, 400u, 600u, 2000u}) {
          const Bytes cut = cut_words(wire, keep);
          CHECK(status_of(cut) == Status::kCorrupt, low_bits, high, columns, keep);
          tester.test(cut);
        }
      }
    }
  }
}

// ---- column profiles, one rule at a time

// The profiled segment's parts, put together again after a change.
struct Profiled {
  Bytes headers, bits, rest;
  uint32_t length = 0;  // as it is sent

  explicit Profiled(const Bytes& wire) {
    gct::SegmentLayout layout;
    CHECK(gct::read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
    const auto at = [&](size_t i) { return wire.begin() + static_cast<std::ptrdiff_t>(i); };
    headers.assign(wire.begin(), at(layout.profile_offset - 4));
    bits.assign(at(layout.profile_offset), at(layout.payload_offset));
    rest.assign(at(layout.payload_offset), wire.end());
    length = static_cast<uint32_t>(bits.size());
  }

  Bytes wire() const {
    Bytes w = headers;
    w.resize(w.size() + 4);
    gct::store_le<uint32_t>(&w[headers.size()], length);
    w.insert(w.end(), bits.begin(), bits.end());
    w.insert(w.end(), rest.begin(), rest.end());
    gct::store_le<uint64_t>(&w[24], w.size());
    return w;
  }
};

// Bits of these offsets.
Bytes profile_bits(const std::vector<int>& offsets) {
  Bytes bytes;
  gct::BitWriter writer(&bytes);
  for (int offset : offsets) gct::put_golomb(&writer, gct::zigzag(offset), 0);
  writer.finish();
  return bytes;
}

void test_profile_rules(const Bytes& sound) {
  constexpr size_t kFirstColumns = 60, kSecondRun = 64, kMode = 16;
  const Profiled parts(sound);
  CHECK(parts.wire() == sound);
  const auto with_bits = [&](const Bytes& bits, uint32_t length) {
    Profiled p = parts;
    p.bits = bits;
    p.length = length;
    return status_of(p.wire());
  };
  const auto with_offsets = [&](const std::vector<int>& offsets) {
    const Bytes bits = profile_bits(offsets);
    return with_bits(bits, static_cast<uint32_t>(bits.size()));
  };
  // Other offsets are other tables: the pieces no longer end as they should, but the profile does.
  CHECK(with_bits(parts.bits, parts.length) == Status::kOk);
  const auto patched = [&](size_t at, uint32_t value) {
    Bytes wire = sound;
    gct::store_le<uint32_t>(&wire[at], value);
    return status_of(wire);
  };
  std::vector<int> offsets(50, 0);
  for (int bad : {gct::kMinColumnOffset - 1, gct::kMaxColumnOffset + 1, 1000, 1 << 29}) {
    offsets[49] = bad;
    CHECK(with_offsets(offsets) == Status::kCorrupt, bad);
  }
  // Too few, too many, padding that isn't zero, a byte too many.
  CHECK(with_offsets(std::vector<int>(49, 1)) == Status::kCorrupt);
  CHECK(with_offsets(std::vector<int>(60, 1)) == Status::kCorrupt);
  Bytes bits = profile_bits(std::vector<int>(50, 0));
  bits.back() |= 0x80;
  CHECK(with_bits(bits, static_cast<uint32_t>(bits.size())) == Status::kCorrupt);
  bits = parts.bits;
  bits.push_back(0);
  CHECK(with_bits(bits, parts.length + 1) == Status::kCorrupt);
  // A length under a bit a column, over what is there, over 31 bits.
  const size_t length_at = parts.headers.size();
  for (uint32_t length : {0u, 1u, 6u, static_cast<uint32_t>(sound.size()), 0x80000000u, ~0u})
    CHECK(patched(length_at, length) == Status::kBadHeader, length);
  for (uint32_t length : {parts.length - 1, parts.length + 1})
    CHECK(patched(length_at, length) != Status::kOk, length);
  // The field in the run headers.
  CHECK(patched(kFirstColumns, 0) != Status::kOk);
  for (uint32_t columns : {4021u, gct::kMaxColumns + 1, ~0u})  // the first is numel + 1
    CHECK(patched(kFirstColumns, columns) == Status::kBadHeader, columns);
  CHECK(patched(kSecondRun + 20, 301) == Status::kBadHeader);
  // Columns in runs of other modes and in kinds without pieces.
  for (uint8_t mode : {0, 1, 2}) {
    Bytes wire = sound;
    wire[kSecondRun + kMode] = mode;
    gct::store_le<uint32_t>(&wire[kSecondRun + 20], 50);
    CHECK(status_of(wire) == Status::kBadHeader, mode);
  }
  for (uint8_t kind : {0, 3}) {
    Bytes wire = sound;
    wire[5] = kind;
    wire[37] = kind == 3 ? 4 : 0;
    CHECK(status_of(wire) == Status::kBadHeader, kind);
  }
}

// ---- low-rank parts, one rule at a time

void test_low_rank_rules(const Bytes& sound) {
  gct::SegmentLayout layout;
  CHECK(gct::read_layout(sound.data(), sound.size(), &layout) == Status::kOk);
  const gct::LowRankPart& part = layout.low_rank.parts[0];
  const uint32_t columns = static_cast<uint32_t>(part.columns);
  const size_t count_at = layout.payload_offset - layout.low_rank.bytes, part_at = count_at + 4;
  const size_t factors_at = layout.payload_offset - layout.low_rank.factors_bytes;
  const auto patched = [&](size_t at, uint32_t value) {
    Bytes wire = sound;
    gct::store_le<uint32_t>(&wire[at], value);
    return status_of(wire);
  };
  CHECK(gct::load_le<uint32_t>(&sound[count_at]) == 2);
  for (uint32_t count : {0u, 1u, 3u, 1u << 20, ~0u})
    CHECK(patched(count_at, count) == Status::kBadHeader, count);
  // Shorter than a row, raw runs, the next part's run, no run at all.
  for (uint32_t run : {1u, 3u, 2u, 4u, ~0u})
    CHECK(patched(part_at, run) == Status::kBadHeader, run);
  for (uint32_t wrong : {0u, 5001u, ~0u}) CHECK(patched(part_at + 4, wrong) == Status::kBadHeader);
  for (uint32_t first : {columns, ~0u}) CHECK(patched(part_at + 8, first) == Status::kBadHeader);
  for (uint32_t rank : {0u, 65u, ~0u}) CHECK(patched(part_at + 12, rank) == Status::kBadHeader);
  CHECK(patched(part_at + 16, 0x7fc00000) == Status::kOk);  // a gain
  // As many factors in another order of columns and rows would be sound, fewer or more aren't.
  CHECK(patched(part_at + 4, columns + 30) == Status::kBadHeader);
  const uint32_t length = static_cast<uint32_t>(layout.low_rank.factors_bytes);
  for (uint32_t wrong : {0u, 39u, length - 1, length + 1, ~0u})
    CHECK(patched(factors_at - 4, wrong) != Status::kOk, wrong);
  // The factors' segment: magic, flags, numel, size.
  CHECK(patched(factors_at, 0) == Status::kBadMagic);
  CHECK(patched(factors_at + 16, 1) != Status::kOk);
  CHECK(patched(factors_at + 24, length - 1) != Status::kOk);
  Bytes nested = sound;
  nested[factors_at + 6] |= gct::kFlagLowRank;
  CHECK(status_of(nested) == Status::kBadHeader);
  Bytes without = sound;
  without[6] &= static_cast<uint8_t>(~gct::kFlagLowRank);
  CHECK(status_of(without) != Status::kOk);
}

// 2^47 zeros and factors that go with them, in less than 200 bytes: nothing is allocated for a
// receiver that expects another number.
void test_huge_low_rank_part() {
  constexpr int64_t kNumel = int64_t{1} << 47, kRank = 2;
  constexpr uint32_t kColumns = 1u << 20;
  const auto zeros = [](int64_t numel, gct::WireKind kind, size_t more) {
    Bytes wire(gct::kSegmentHeaderBytes + gct::kRunHeaderBytes + more);
    gct::SegmentHeader header;
    header.kind = kind;
    header.flags = more > 0 ? gct::kFlagLowRank : 0;
    header.num_runs = 1;
    header.numel = numel;
    header.size_bytes = static_cast<int64_t>(wire.size());
    gct::write_segment_header(header, wire.data());
    gct::RunHeader run;
    run.numel = numel;
    gct::write_run_header(run, &wire[gct::kSegmentHeaderBytes]);
    return wire;
  };
  const Bytes factors =
      zeros(kRank * (kNumel / kColumns + int64_t{kColumns}), gct::WireKind::kRaw, 0);
  constexpr size_t kSection = 4 + gct::kLowRankPartBytes + 4 * kRank + 4;
  Bytes wire = zeros(kNumel, gct::WireKind::kGG, kSection + factors.size());
  size_t at = gct::kSegmentHeaderBytes + gct::kRunHeaderBytes;
  for (uint32_t field :
       {1u, 0u, kColumns, 0u, uint32_t{kRank}, 0u, 0u, static_cast<uint32_t>(factors.size())}) {
    gct::store_le<uint32_t>(&wire[at], field);
    at += 4;
  }
  std::copy(factors.begin(), factors.end(), wire.begin() + static_cast<std::ptrdiff_t>(at));
  gct::SegmentInfo info;
  CHECK(gct::inspect(wire.data(), wire.size(), &info) == Status::kOk && info.numel == kNumel);
  CHECK(decode_exactly(wire, 100, false).status == Status::kSizeMismatch);
}

}  // namespace

int main() {
  make_tables();
  test_huge_low_rank_part();
  Random random(1);
  Tester tester;
  const std::vector<Bytes> segments = make_segments(random);
  for (size_t i : {0, 2}) test_profile_rules(segments[i]);
  for (size_t i : {1, 3}) test_low_rank_rules(segments[i]);
  test_sound_segments(segments, tester);
  test_words_that_end_early(random, tester);
  test_damaged_segments(segments, random, tester);
  std::cerr << kDamaged << " damaged segments: " << tester.seen[Status::kOk] << " read, "
            << tester.seen[Status::kCorrupt] << " with a corrupt payload\n";
  return gct::test::result();
}
