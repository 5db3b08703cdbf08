// Any values, parameters and layout: encode() refuses or succeeds, within the sizes that were
// promised and never beyond its buffer, the same bytes each time; decode() gives back the right
// elements with the error that the step allows. So do the bodies of the GPU kernels.
//
// GCT_FUZZ_SEGMENTS=FOLDER keeps each input's segment there: seeds for fuzz_decode.
#include <fstream>

#include "core/wire.h"
#include "cpu/thread_pool.h"
#include "cuda/executor.h"
#include "cuda/layout.h"
#include "decoding.h"
#include "encoding.h"
#include "require.h"

namespace gct::fuzz {
namespace {

// ---- sizes

// docs/wire-format.md: what kind raw takes, and never more.
size_t raw_size(const Case& c) {
  return 40 + 24 * c.input->runs.size() + test::raw_bytes(*c.input);
}

// In the room that was promised, in none less than it takes, and in whatever a caller has.
Encoded check_sizes(const Case& c, size_t any, Workspace* workspace) {
  const size_t most = max_segment_bytes(c.params, c.input->view);
  const size_t slot = slot_bytes(c.params, c.input->view);
  REQUIRE(most == raw_size(c), most, raw_size(c));
  REQUIRE(slot <= most, slot, most);
  const Encoded encoded = encode_in(c, slot, workspace);
  REQUIRE(encoded.status == Status::kOk, static_cast<int>(encoded.status));
  const Encoded smaller = encode_in(c, any % (encoded.wire.size() + 1), workspace);
  REQUIRE(smaller.status == Status::kOk || smaller.status == Status::kTooSmall,
          static_cast<int>(smaller.status));
  Workspace fresh;
  ThreadPool pool(2);
  fresh.pool = &pool;
  const Encoded again = encode_in(c, most, &fresh);
  REQUIRE(again.status == Status::kOk && again.wire == encoded.wire, again.wire.size());
  return encoded;
}

// ---- values

// Blocks whose mean is larger make their run a NaN: 2^124, less a border between classes' rounding.
const double kTooLarge = std::exp2(124) * 0.999;
// With a block this large there may be no step that makes zeros of all, so if the target in bits
// leaves no room for anything else all coded runs become NaN.
const double kTooLargeForZeros = std::exp2(108);

struct RunView {
  SegmentHeader segment;
  RunHeader header;
  bool low_rank, lost;
  const float* x;
  const float* y;
};

double mean_abs(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::fabs(static_cast<double>(x[i]));
  return sum / static_cast<double>(n);
}

// Whether the run has a NaN, an infinity or a block with at least this mean.
bool reaches(const RunView& run, double limit) {
  for (int64_t at = 0; at < run.header.numel; at += kBlock) {
    const double mean = mean_abs(run.x + at, std::min<int64_t>(kBlock, run.header.numel - at));
    if (!(mean < limit)) return true;
  }
  return false;
}

// What a value of the block may be off. Bins are one step wide but for the one at zero, whose half
// width is 0.8 steps at most; the block's class is the mean's or, in float32, the next one, and
// with a column profile one of up to 12 more (offsets divided out, -12 at the lowest). Codes of
// kind fixed end at their largest level, and the lowest is the mean at most, rounded to bfloat16.
double allowed_error(const RunView& run, double mean, double value) {
  if (run.segment.kind == WireKind::kFixed) return value + 1.005 * mean;
  const int own = scale_class(static_cast<float>(mean));
  if (own + 1 < kMinClass) return value;  // a zero block
  const int c = own + (run.header.columns > 0 ? 13 : 1);
  float step = 0;
  if (!scale_by_sixteenths(run.header.code.step, run.header.code.allocation8 * c, &step))
    return HUGE_VAL;
  const double zeroed = own <= kMinClass ? value : 1e-6 * value;  // else there are two roundings
  if (run.segment.levels() == Levels::kUnitGain)  // of levels as far from the value, up to 4 times
    return 4 * static_cast<double>(step) + 3 * value + 4 * zeroed;
  return (run.segment.trellis() ? test::kTrellisReach : 1) * static_cast<double>(step) + zeroed;
}

void check_coded(const RunView& run) {
  double signal = 0, error = 0;
  for (int64_t at = 0; at < run.header.numel; at += kBlock) {
    const int64_t n = std::min<int64_t>(kBlock, run.header.numel - at);
    const double mean = mean_abs(run.x + at, n);
    for (int64_t i = at; i < at + n; ++i) {
      const double x = static_cast<double>(run.x[i]);
      const double y = static_cast<double>(run.y[i]);
      const double allowed = allowed_error(run, mean, std::fabs(x));
      REQUIRE(std::isfinite(x), i);
      // The level may lie beyond float32's range where the value is close to its end.
      if (std::isinf(y) && std::fabs(x) + allowed > 3.402e38 && x * y > 0) continue;
      const double off = std::fabs(x - y);
      signal += x * x;
      error += off * off;
      if (!run.low_rank) REQUIRE(off <= allowed, i, x, run.y[i], allowed);
    }
  }
  // Beside a low-rank part the blocks hold what is left, whose scale isn't known here. Rounding at
  // random and levels of unit gain may err by more than the value.
  if (run.low_rank && run.segment.levels() == Levels::kCentroids)
    REQUIRE(error <= signal, error, signal);
}

void check_run(const RunView& run) {
  const int64_t n = run.header.numel;
  switch (run.header.mode) {
    case RunMode::kRaw:
      REQUIRE(
          value_bits(run.x, static_cast<size_t>(n)) == value_bits(run.y, static_cast<size_t>(n)),
          n);
      break;
    case RunMode::kNonFinite:
      REQUIRE(run.lost || reaches(run, kTooLarge), n);
      REQUIRE(std::all_of(run.y, run.y + n, [](float f) { return f != f; }), n);
      break;
    case RunMode::kZero:
      if (run.low_rank) return check_coded(run);
      for (int64_t i = 0; i < n; ++i) {
        REQUIRE(std::fabs(static_cast<double>(run.x[i])) <= kBlock * std::exp2(-99), i, run.x[i]);
        REQUIRE(float_bits(run.y[i]) == 0, i, run.y[i]);
      }
      break;
    case RunMode::kCoded:
      check_coded(run);
  }
}

bool reaches_anywhere(const Case& c, double limit) {
  const float* x = c.input->values.floats.data();
  bool found = false;
  for (const Run& run : c.input->runs) {
    RunHeader h;
    h.numel = run.numel;
    found = found || (!run.raw && reaches({{}, h, false, false, x, nullptr}, limit));
    x += run.numel;
  }
  return found;
}

void check_values(const Case& c, const std::vector<uint8_t>& wire, const std::vector<float>& y) {
  SegmentLayout layout;
  REQUIRE(read_layout(wire.data(), wire.size(), &layout) == Status::kOk);
  REQUIRE(layout.runs.size() == c.input->runs.size(), layout.runs.size());
  int64_t at = 0;
  size_t part = 0;
  const bool lost = c.params.target == Target::kBits && reaches_anywhere(c, kTooLargeForZeros);
  for (size_t i = 0; i < layout.runs.size(); ++i) {
    const std::vector<LowRankPart>& parts = layout.low_rank.parts;
    const bool low_rank = part < parts.size() && parts[part].run == i;
    part += low_rank ? 1 : 0;
    const RunHeader& h = layout.runs[i];
    REQUIRE(h.numel == c.input->runs[i].numel, i, h.numel);
    REQUIRE(!c.input->runs[i].raw || h.mode == RunMode::kRaw, i);
    check_run(
        {layout.header, h, low_rank, lost, c.input->values.floats.data() + at, y.data() + at});
    at += h.numel;
  }
}

void check_decoding(const Case& c, const std::vector<uint8_t>& wire, Workspace* workspace) {
  const int64_t numel = c.input->numel();
  SegmentInfo info;
  REQUIRE(inspect(wire.data(), wire.size(), &info) == Status::kOk);
  REQUIRE(info.numel == numel && info.size_bytes == static_cast<int64_t>(wire.size()), info.numel);
  const Decoded plain = decode_exactly(wire, numel, workspace);
  REQUIRE(plain.status == Status::kOk, static_cast<int>(plain.status));
  std::vector<float> y;
  for (const uint32_t bits : plain.bits) y.push_back(bits_float(bits));
  check_values(c, wire, y);
  const std::vector<float> start = some_values(numel);
  const Decoded sums = decode_exactly(wire, numel, workspace, &start);
  for (size_t i = 0; i < y.size(); ++i) y[i] = start[i] + y[i];
  REQUIRE(sums.status == Status::kOk && sums.bits == value_bits(y.data(), y.size()), numel);
}

// ---- the bodies of the GPU kernels, which choose steps of their own

bool for_bodies(const Case& c) {
  const bool kind =
      c.params.kind == Kind::kGG ? c.params.target != Target::kSnrDb : c.params.kind != Kind::kEG;
  return kind && c.params.effort == Effort::kNormal && c.input->values.dtype != DType::kFloat64 &&
         c.input->numel() > 0;
}

void check_bodies(const Case& c, Workspace* workspace) {
  const gpu::EncodeLayout layout(c.params, c.input->values.dtype, {{0, c.input->runs}});
  std::vector<uint8_t> scratch(static_cast<size_t>(layout.scratch_bytes()), 0xa5);
  std::unique_ptr<uint8_t[]> out(new uint8_t[static_cast<size_t>(layout.out_bytes())]);
  gpu::Executor& executor = gpu::host_executor();
  gpu::EncodeBatch batch =
      layout.bind(layout.descriptors().data(), scratch.data(), executor.tables());
  batch.data = c.input->values.bytes.data();
  batch.out = out.get();
  executor.encode(batch, nullptr);
  const size_t slot = static_cast<size_t>(layout.out_bytes());
  REQUIRE(slot == slot_bytes(c.params, c.input->view), slot);
  SegmentInfo info;
  REQUIRE(inspect(out.get(), slot, &info) == Status::kOk, slot);
  check_decoding(c, {out.get(), out.get() + info.size_bytes}, workspace);
}

void keep_segment(const std::vector<uint8_t>& wire) {
  static const char* folder = std::getenv("GCT_FUZZ_SEGMENTS");
  static int count = 0;
  if (folder == nullptr) return;
  std::ofstream file(std::string(folder) + "/segment" + std::to_string(count++), std::ios::binary);
  file.write(reinterpret_cast<const char*>(wire.data()), static_cast<std::streamsize>(wire.size()));
}

}  // namespace
}  // namespace gct::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gct::fuzz;
  static gct::Workspace workspace;  // also: what one message leaves there must not change the next
  Bytes in(data, size);
  const size_t any_capacity = in.u32();
  const Case c(size < 4 ? nullptr : data + 4, in.left());
  if (!sound(c.params)) {
    REQUIRE(encode_in(c, 100, &workspace).status == gct::Status::kBadArgument);
    return 0;
  }
  const Encoded encoded = check_sizes(c, any_capacity, &workspace);
  check_decoding(c, encoded.wire, &workspace);
  if (!encoded.own.empty()) {
    const std::vector<float> zeros(encoded.own.size());  // -0 added to one is +0
    const auto numel = c.input->numel();
    REQUIRE(encoded.own == decode_exactly(encoded.wire, numel, &workspace, &zeros, 0.5f).bits,
            numel);
  }
  if (for_bodies(c)) check_bodies(c, &workspace);
  keep_segment(encoded.wire);
  return 0;
}
