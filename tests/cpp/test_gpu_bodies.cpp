// The kernels' bodies, run on the CPU, against the codec: encoding gives the bytes that the scalar
// reference gives for the same header parameters, decoding gives the same bits in both directions,
// no order of tasks matters, and no bytes make a decoder read or write outside its buffers.
#include <algorithm>
#include <cstring>
#include <set>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/piece_classes.h"
#include "cpu/pieces.h"
#include "cuda/host_tables.h"
#include "cuda/host_warp.h"
#include "cuda/layout.h"
#include "cuda/pipeline.h"
#include "inputs.h"

namespace gct {
namespace {

using gpu::HostLauncher;
using test::describe;
using test::Input;
using test::make_values;
using test::params;
using test::Random;
using test::unit_gain;
using test::value_kinds;
using test::Values;

const gpu::CodingTables& coding_tables() {
  static const gpu::HostTables host;
  static const gpu::CodingTables tables = {host.encode.data(),          host.decode.data(),
                                           host.levels.data(),          host.class_encode.data(),
                                           host.class_decode.data(),    host.fixed_levels.data(),
                                           host.fixed_thresholds.data()};
  return tables;
}

// Scratch full of garbage: nothing may rely on zeros.
template <typename Layout>
std::vector<uint8_t> make_scratch(const Layout& layout) {
  return std::vector<uint8_t>(static_cast<size_t>(layout.scratch_bytes()), 0xa5);
}

// Segments as the kernels encode them, each cut to its size, and what they found out.
struct Encoded {
  std::vector<std::vector<uint8_t>> wires;
  std::vector<gpu::SegmentState> states;
  std::vector<int64_t> slots;
};

Encoded encode_batch(const CodecParams& p, const Values& values,
                     const std::vector<gpu::SegmentRuns>& segments,
                     HostLauncher::Order order = HostLauncher::Order::kForward) {
  const gpu::EncodeLayout layout(p, values.dtype, segments);
  std::vector<uint8_t> scratch = make_scratch(layout);
  std::vector<uint8_t> out(static_cast<size_t>(layout.out_bytes()), 0xc5);
  gpu::EncodeBatch batch =
      layout.bind(layout.descriptors().data(), scratch.data(), coding_tables());
  batch.data = values.bytes.data();
  batch.out = out.data();
  HostLauncher launcher(order);
  gpu::run_encode(launcher, batch);
  Encoded e;
  for (int64_t i = 0; i < batch.num_segments; ++i) {
    const gpu::BatchSegment& s = batch.segments[i];
    CHECK(batch.states[i].size <= s.slot, batch.states[i].size, s.slot);
    const uint8_t* begin = out.data() + s.out;
    const auto padding = [](uint8_t b) { return b != 0; };
    CHECK(std::none_of(begin + batch.states[i].size, begin + s.slot, padding));
    e.wires.emplace_back(begin, begin + batch.states[i].size);
    e.states.push_back(batch.states[i]);
    e.slots.push_back(s.slot);
  }
  return e;
}

std::vector<gpu::SegmentRuns> one_segment(const Input& input) { return {{0, input.runs}}; }

struct Decoded {
  Status status;
  std::vector<float> values;
};

Decoded decode_bodies(const std::vector<uint8_t>& wire, int64_t numel, int64_t max_runs,
                      bool accumulate, HostLauncher::Order order = HostLauncher::Order::kForward) {
  const gpu::DecodeLayout layout({{0, static_cast<int64_t>(wire.size()), 0, numel, max_runs}});
  std::vector<uint8_t> scratch = make_scratch(layout);
  Decoded d = {Status::kOk, std::vector<float>(static_cast<size_t>(numel), 0.125f)};
  gpu::DecodeBatch batch =
      layout.bind(layout.descriptors().data(), scratch.data(), coding_tables());
  batch.wire = wire.data();
  batch.out = d.values.data();
  batch.accumulate = accumulate;
  int32_t status = -1;
  batch.statuses = &status;
  HostLauncher launcher(order);
  gpu::run_decode(launcher, batch);
  d.status = static_cast<Status>(status);
  return d;
}

Decoded decode_cpu(const std::vector<uint8_t>& wire, int64_t numel, bool accumulate) {
  Workspace ws;
  Decoded d = {Status::kOk, std::vector<float>(static_cast<size_t>(numel), 0.125f)};
  d.status = decode(wire.data(), wire.size(), d.values.data(), numel, accumulate, ws);
  return d;
}

// Bit by bit, but for which NaN a NaN is.
bool same_values(const std::vector<float>& a, const std::vector<float>& b) {
  const auto same = [](float x, float y) {
    return float_bits(x) == float_bits(y) || (x != x && y != y);
  };
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), same);
}

void check_decoding(const std::string& name, const std::vector<uint8_t>& wire, int64_t numel) {
  SegmentInfo info;
  CHECK_IN(name, inspect(wire.data(), wire.size(), &info) == Status::kOk);
  for (const bool accumulate : {false, true}) {
    const Decoded expected = decode_cpu(wire, numel, accumulate);
    const Decoded got = decode_bodies(wire, numel, info.num_runs, accumulate);
    CHECK_IN(name, expected.status == Status::kOk, static_cast<int>(expected.status));
    CHECK_IN(name, got.status == Status::kOk, static_cast<int>(got.status));
    CHECK_IN(name, same_values(expected.values, got.values), accumulate);
  }
}

// The segment once more from the parts that make the codec's: its own plan, with step, table and
// exact log2 of the step as the kernels chose them.
std::vector<uint8_t> reference_wire(const std::string& name, const CodecParams& p,
                                    const Input& input, const std::vector<uint8_t>& wire,
                                    const gpu::SegmentState& state) {
  SegmentLayout layout;
  CHECK_IN(name, read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  Workspace ws;
  EncodePlan plan;
  analyze(p, input.view, ws, &plan);
  for (size_t r = 0; r < plan.runs.size(); ++r) {
    const RunHeader& got = layout.runs[r];
    RunHeader& h = plan.runs[r].header;
    CHECK_IN(name, got.mode == h.mode, r, static_cast<int>(got.mode), static_cast<int>(h.mode));
    if (h.mode != RunMode::kCoded) continue;
    CHECK_IN(name, got.code.shape == h.code.shape, r, got.code.shape, h.code.shape);
    CHECK_IN(name, got.base_class == h.base_class, r, got.base_class, h.base_class);
    h.code = got.code;
  }
  plan.log2_step = state.log2_step;
  prepare_classes(&plan);
  std::vector<uint8_t> entries, pieces;
  for (int64_t begin = 0; begin < plan.coded_blocks; begin += gpu::kPieceBlocks) {
    PieceOutput piece;
    encode_piece_gg(plan, begin, std::min(begin + gpu::kPieceBlocks, plan.coded_blocks), false,
                    nullptr, &piece);
    const auto put = [](auto value, std::vector<uint8_t>* bytes) {
      bytes->resize(bytes->size() + sizeof value);
      store_le(bytes->data() + bytes->size() - sizeof value, value);
    };
    put(piece.num_words(), &entries);
    put(static_cast<uint32_t>(piece.extra.size()), &entries);
    for (uint32_t x : piece.states) put(x, &pieces);
    for (size_t i = piece.first_word; i < piece.words.size(); ++i) put(piece.words[i], &pieces);
    pieces.insert(pieces.end(), piece.extra.begin(), piece.extra.end());
  }
  std::vector<uint8_t> expected(kSegmentHeaderBytes + kRunHeaderBytes * plan.runs.size());
  expected.insert(expected.end(), entries.begin(), entries.end());
  expected.insert(expected.end(), pieces.begin(), pieces.end());
  for (size_t r = 0; r < plan.runs.size(); ++r) {
    write_run_header(plan.runs[r].header, &expected[kSegmentHeaderBytes + kRunHeaderBytes * r]);
    if (plan.runs[r].header.mode != RunMode::kRaw) continue;
    const auto* data = static_cast<const uint8_t*>(input.runs[r].data);
    expected.insert(expected.end(), data,
                    data + input.runs[r].numel * dtype_bytes(input.view.dtype));
  }
  SegmentHeader h = layout.header;
  h.size_bytes = static_cast<int64_t>(expected.size());
  write_segment_header(h, expected.data());
  return expected;
}

bool is_raw(const std::vector<uint8_t>& wire) { return wire[5] == 0; }

void check_encoding(const std::string& name, const CodecParams& p, const Input& input) {
  const Encoded e = encode_batch(p, input.values, one_segment(input));
  if (input.numel() == 0) return CHECK_IN(name, e.wires.empty());
  const std::vector<uint8_t>& wire = e.wires[0];
  check_decoding(name, wire, input.numel());
  if (p.kind == Kind::kGG && !is_raw(wire)) {
    CHECK_IN(name, wire == reference_wire(name, p, input, wire, e.states[0]), wire.size());
  } else {
    std::vector<uint8_t> expected(max_segment_bytes(p, input.view));
    size_t written = 0;
    Workspace ws;
    const Status status =
        encode(p, input.view, expected.data(), expected.size(), &written, ws, nullptr);
    CHECK_IN(name, status == Status::kOk);
    expected.resize(written);
    CHECK_IN(name, wire == expected, wire.size(), written);
  }
}

// ---- what is compared

const std::vector<std::vector<int64_t>>& cuts() {
  static const std::vector<std::vector<int64_t>> all = {
      {1}, {7}, {255}, {256}, {257}, {8191, 8193}, {300, -5, 0, 700, -64, 1}, {66000}, {}};
  return all;
}

const std::vector<CodecParams>& settings() {
  static const std::vector<CodecParams> all = {
      params(Kind::kGG, Target::kBits, 2.0),
      params(Kind::kGG, Target::kBits, 0.3),
      params(Kind::kGG, Target::kBits, 6.0, 0),
      params(Kind::kGG, Target::kBits, 2.0, 4, Rounding::kStochastic),
      unit_gain(params(Kind::kGG, Target::kBits, 1.2)),
      unit_gain(params(Kind::kGG, Target::kBits, 6.0, 0)),
      params(Kind::kGG, Target::kStep, 1e-3, 0),
      params(Kind::kGG, Target::kStep, 0.25),
      params(Kind::kGG, Target::kStep, 1e-6, 8, Rounding::kStochastic),
      params(Kind::kFixed, Target::kBits, 1),
      params(Kind::kFixed, Target::kBits, 4),
      params(Kind::kFixed, Target::kBits, 7),
      params(Kind::kRaw, Target::kBits, 2),
  };
  return all;
}

int64_t total(const std::vector<int64_t>& lengths) {
  int64_t sum = 0;
  for (int64_t n : lengths) sum += std::abs(n);
  return sum;
}

std::string lengths_name(const std::vector<int64_t>& lengths) {
  std::string name = "[";
  for (int64_t n : lengths) name += std::to_string(n) + " ";
  return name + "]";
}

void test_encoding() {
  const DType dtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  size_t turn = 0;
  for (const auto& kind : value_kinds()) {
    ++turn;
    for (const auto& lengths : cuts()) {
      for (const CodecParams& p : settings()) {
        // Every pair of values, lengths, settings and data types, but not every combination.
        if (++turn % 3 != 0) continue;
        const Input input(make_values(kind, dtypes[turn / 3 % 3], total(lengths), 7), lengths);
        check_encoding(std::string(kind.name) + " " + lengths_name(lengths) + " " + describe(p), p,
                       input);
      }
    }
  }
}

void test_nonfinite() {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const CodecParams& p : settings()) {
      Values values = make_values(value_kinds()[0], DType::kFloat32, 1000, 3);
      values.floats[700] = static_cast<float>(bad);
      std::memcpy(values.bytes.data() + 4 * 700, &values.floats[700], 4);
      const Input input(values, {500, 500});
      check_encoding("not finite, " + describe(p), p, input);
    }
  }
}

// Several segments at once are what they are alone, in whatever order tasks run.
void test_batches() {
  for (const CodecParams& p : settings()) {
    const Input input(make_values(value_kinds()[4], DType::kFloat32, 40000, 11),
                      {9000, -100, 10900, 20000});
    const std::vector<gpu::SegmentRuns> segments = {{0, {input.runs[0], input.runs[1]}},
                                                    {9100, {input.runs[2]}},
                                                    {20000, {}},
                                                    {20000, {input.runs[3]}}};
    const Encoded all = encode_batch(p, input.values, segments);
    CHECK(all.wires.size() == 3);
    for (const auto order : {HostLauncher::Order::kBackward, HostLauncher::Order::kScattered})
      CHECK_IN(describe(p), all.wires == encode_batch(p, input.values, segments, order).wires);
    size_t at = 0;
    for (const auto& segment : segments) {
      if (segment.runs.empty()) continue;
      const Encoded alone = encode_batch(p, input.values, {segment});
      CHECK_IN(describe(p), alone.wires[0] == all.wires[at]);
      const int64_t numel =
          total({segment.runs[0].numel, 0}) + (segment.runs.size() > 1 ? segment.runs[1].numel : 0);
      const Decoded forward = decode_bodies(all.wires[at], numel, 2, true);
      const Decoded backward =
          decode_bodies(all.wires[at], numel, 2, true, HostLauncher::Order::kBackward);
      CHECK_IN(describe(p), same_values(forward.values, backward.values));
      ++at;
    }
  }
}

// Sizes: never over the slot (encode_batch checks it), and close to it where a step can do that.
// 3 % is what the rate control promises and 2 % is for these inputs being short. Evenly distributed
// values are here for the fallback: between two steps a thirtieth of an octave apart their rate
// falls from 1.3 to 0.4 bits, which six attempts may not resolve at 1 bit.
void test_rates() {
  const std::set<std::string> regular = {"normal", "laplace", "uniform", "scales"};
  for (const auto& kind : value_kinds()) {
    if (regular.count(kind.name) == 0) continue;
    for (const double bits : {0.5, 1.0, 2.0, 4.0, 8.0}) {
      for (const int allocation8 : {0, 8}) {
        const CodecParams p = params(Kind::kGG, Target::kBits, bits, allocation8);
        const Input input(make_values(kind, DType::kFloat32, 150000, 5), {50000, 100000});
        const Encoded e = encode_batch(p, input.values, one_segment(input));
        const double share = static_cast<double>(e.wires[0].size()) / (bits * 150000 / 8);
        const double least = std::string(kind.name) == "uniform" && bits == 1 ? 0.4 : 0.95;
        CHECK_IN(kind.name, share > least && share <= 1, share, bits, allocation8);
      }
    }
  }
}

// What the codec wrote, with everything that the kernels know.
void test_codec_segments() {
  for (const auto& kind : value_kinds()) {
    for (const CodecParams& p : settings()) {
      const std::vector<int64_t> lengths = {70000, -300, 257, 0, 1};
      const Input input(make_values(kind, DType::kFloat32, total(lengths), 23), lengths);
      std::vector<uint8_t> wire(max_segment_bytes(p, input.view));
      size_t written = 0;
      Workspace ws;
      CHECK(encode(p, input.view, wire.data(), wire.size(), &written, ws) == Status::kOk);
      wire.resize(written);
      check_decoding(kind.name + (" " + describe(p)), wire, input.numel());
    }
  }
}

// And what they don't: refused, not misread.
void test_unsupported() {
  const Input input(test::make_matrix(DType::kFloat32, 40000, 200, 4, 3), {40000}, 200);
  CodecParams low_rank = params(Kind::kGG, Target::kBits, 3, 0);
  low_rank.max_rank = 4;
  for (const CodecParams& p :
       {params(Kind::kEG, Target::kBits, 2), low_rank, params(Kind::kGG, Target::kBits, 2, 0)}) {
    std::vector<uint8_t> wire(max_segment_bytes(p, input.view));
    size_t written = 0;
    Workspace ws;
    CHECK(encode(p, input.view, wire.data(), wire.size(), &written, ws) == Status::kOk);
    wire.resize(written);
    const Decoded d = decode_bodies(wire, input.numel(), 1, false);
    CHECK_IN(describe(p), d.status == Status::kUnsupported, static_cast<int>(d.status));
    CHECK(std::all_of(d.values.begin(), d.values.end(), [](float x) { return x != x; }));
  }
  for (const CodecParams& p :
       {params(Kind::kEG, Target::kBits, 2), params(Kind::kGG, Target::kSnrDb, 12)}) {
    bool thrown = false;
    try {
      gpu::EncodeLayout(p, DType::kFloat32, one_segment(input));
    } catch (const std::invalid_argument&) {
      thrown = true;
    }
    CHECK_IN(describe(p), thrown);
  }
}

// Damaged segments: the kernels find sound what the codec finds sound, decode the same then, and
// NaN otherwise. The address sanitizer watches the buffers, which have no byte to spare.
void test_malformed() {
  Random random(99);
  for (const CodecParams& p : settings()) {
    const Input input(make_values(value_kinds()[11], DType::kFloat32, 3000, 17),
                      {1000, -300, 1700});
    const std::vector<uint8_t> wire = encode_batch(p, input.values, one_segment(input)).wires[0];
    for (int round = 0; round < 400; ++round) {
      std::vector<uint8_t> bad = wire;
      if (round % 4 == 0) bad.resize(random.below(bad.size() + 1));
      const size_t first = round % 2 == 0 ? bad.size() : std::min<size_t>(bad.size(), 120);
      for (uint64_t i = 0; i <= random.below(3) && first > 0; ++i)
        bad[random.below(first)] = static_cast<uint8_t>(random.bits());
      bad.shrink_to_fit();
      const Decoded expected = decode_cpu(bad, 3000, false);
      const Decoded got = decode_bodies(bad, 3000, 3, false);
      const bool unsupported = got.status == Status::kUnsupported;
      CHECK_IN(describe(p),
               unsupported || (expected.status == Status::kOk) == (got.status == Status::kOk),
               round, static_cast<int>(expected.status), static_cast<int>(got.status));
      if (got.status == Status::kOk) {
        CHECK_IN(describe(p), same_values(expected.values, got.values), round);
      } else {
        CHECK(std::all_of(got.values.begin(), got.values.end(), [](float x) { return x != x; }));
      }
    }
  }
}

// Indices of buckets beyond 2^31 elements and their bytes; nothing is allocated.
void test_large() {
  constexpr int64_t kHuge = (int64_t{1} << 33) + 77;
  const CodecParams p = params(Kind::kGG, Target::kBits, 2);
  Run run;
  run.numel = kHuge;
  const gpu::EncodeLayout layout(p, DType::kFloat32, {{0, {run}}, {kHuge, {run}}});
  CHECK(layout.out_bytes() > 2 * (kHuge / 4 - 100), layout.out_bytes());
  const gpu::EncodeBatch e = layout.bind(layout.descriptors().data(), nullptr, coding_tables());
  CHECK(e.num_pieces == 2 * div_up(kHuge, 65536), e.num_pieces);
  CHECK(e.num_tiles == 2 * div_up(kHuge, 8192), e.num_tiles);
  const gpu::TilePlace last = gpu::place_tile(e, e.num_tiles - 1);
  CHECK(last.run == 1 && last.block * kBlock + last.numel == kHuge, last.run, last.block);
  CHECK(e.runs[1].offset == kHuge && e.segments[1].out == layout.out_bytes() / 2);
  const gpu::DecodeLayout decoding({{0, layout.out_bytes(), 0, kHuge, 1}});
  CHECK(decoding.scratch_bytes() > kHuge / 32, decoding.scratch_bytes());
}

// Collectives of the executor itself: a warp that disagreed with the hardware's would prove
// nothing.
void test_host_warp() {
  gpu::HostWarp warp;
  gpu::HostWarp::Lanes<int> values, from;
  gpu::HostWarp::Lanes<bool> odd;
  warp.each([&](int lane) {
    values[lane] = lane + 1;
    from[lane] = 31 - lane;
    odd[lane] = lane % 2 == 1;
  });
  CHECK(warp.ballot(odd) == 0xaaaaaaaau);
  CHECK(warp.broadcast(values, 7) == 8);
  CHECK(warp.shuffle(values, from)[0] == 32);
  CHECK(warp.fold(values, gpu::Plus()) == 32 * 33 / 2);
  CHECK(warp.scan(&values) == 32 * 33 / 2);
  CHECK(values[0] == 0 && values[5] == 15 && values[31] == 31 * 32 / 2);
}

}  // namespace
}  // namespace gct

int main() {
  gct::set_implementation("scalar");
  gct::test_host_warp();
  gct::test_encoding();
  gct::test_nonfinite();
  gct::test_batches();
  gct::test_rates();
  gct::test_codec_segments();
  gct::test_unsupported();
  gct::test_malformed();
  gct::test_large();
  return gct::test::result();
}
