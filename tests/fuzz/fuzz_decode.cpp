// Whatever the bytes are, everything that reads a message gives a status or values: inside the
// input and the output, without undefined behaviour, the same by all implementations and by the
// bodies of the GPU kernels, and the same again.
//
// The input is a segment. It is decoded as it is and, so that a fuzzer need not guess constants,
// with magic, version and table id put right; the bytes in their places then say how (see `Wish`).
#include "cpu/crc32c.h"
#include "cpu/thread_pool.h"
#include "cuda/executor.h"
#include "cuda/layout.h"
#include "decoding.h"
#include "require.h"

namespace gct::fuzz {
namespace {

constexpr int64_t kMostElements = 1 << 15;  // 64 bytes may announce 2^48
constexpr int64_t kMostRuns = 4096;         // for the GPU's layout

// Read from the four bytes of the magic: in a segment as it was sent, "GCT1".
struct Wish {
  bool right_size;   // the size becomes the input's
  bool two_threads;  // pieces are shared by a pool
  size_t cut;        // so many bytes less than the size says, or padding where there are more

  explicit Wish(const std::vector<uint8_t>& bytes)
      : right_size(bytes[0] % 2 != 0), two_threads(bytes[1] % 2 != 0), cut(bytes[2] >= 200) {}
};

std::vector<uint8_t> put_right(std::vector<uint8_t> wire, const Wish& wish) {
  SegmentHeader sound;
  sound.flags = wire[6] & (kFlagTrellis | kFlagUnitGain);  // version and tables follow from it
  std::vector<uint8_t> header(kSegmentHeaderBytes);
  write_segment_header(sound, header.data());
  std::copy(header.begin(), header.begin() + 5, wire.begin());
  std::copy(header.begin() + 8, header.begin() + 12, wire.begin() + 8);
  if (wish.right_size) store_le<uint64_t>(&wire[24], wire.size());
  wire.resize(wire.size() - wish.cut);
  return wire;
}

Decoded decode_by_bodies(const std::vector<uint8_t>& wire, const SegmentInfo& info) {
  const gpu::DecodeLayout layout(
      {{0, static_cast<int64_t>(wire.size()), 0, info.numel, info.num_runs}});
  std::vector<uint8_t> scratch(static_cast<size_t>(layout.scratch_bytes()), 0xa5);
  const std::unique_ptr<uint8_t[]> input = exact_copy(wire);
  std::unique_ptr<float[]> output(new float[static_cast<size_t>(info.numel)]());
  gpu::Executor& executor = gpu::host_executor();
  gpu::DecodeBatch batch =
      layout.bind(layout.descriptors().data(), scratch.data(), executor.tables());
  int32_t status = -1;
  batch.wire = input.get();
  batch.out = output.get();
  batch.statuses = &status;
  executor.decode(batch, nullptr);
  Decoded result;
  result.status = static_cast<Status>(status);
  if (result.status == Status::kOk)
    result.bits = value_bits(output.get(), static_cast<size_t>(info.numel));
  return result;
}

void check_bodies(const std::vector<uint8_t>& wire, const SegmentInfo& info,
                  const Decoded& expected) {
  if (info.num_runs > kMostRuns) return;
  const Decoded found = decode_by_bodies(wire, info);
  if (found.status == Status::kUnsupported) return;
  REQUIRE((found.status == Status::kOk) == (expected.status == Status::kOk),
          static_cast<int>(found.status), static_cast<int>(expected.status));
  REQUIRE(found.bits == expected.bits, info.numel);
}

// Sums of what was there and what the segment holds, rounded once.
void check_sums(const std::vector<uint8_t>& wire, const Decoded& plain, int64_t numel,
                Workspace* workspace) {
  const std::vector<float> start = some_values(numel);
  const Decoded sums = decode_exactly(wire, numel, workspace, &start);
  REQUIRE(sums.status == plain.status, static_cast<int>(sums.status));
  for (size_t i = 0; i < sums.bits.size(); ++i) {
    const float sum = start[i] + bits_float(plain.bits[i]);
    const uint32_t expected = sum != sum ? 0x7fc00000u : float_bits(sum);
    // A -0 that is added leaves what was there; no start is one.
    REQUIRE(sums.bits[i] == expected, i, sums.bits[i], expected);
  }
}

ThreadPool& two_threads() {
  static ThreadPool pool(2);
  return pool;
}

void check(const std::vector<uint8_t>& wire, bool threads) {
  static const std::vector<std::string> names = implementations();
  static Workspace workspace;  // also: what one message leaves there must not change the next
  SegmentInfo info;
  const std::unique_ptr<uint8_t[]> input = exact_copy(wire);
  const Status header = inspect(input.get(), wire.size(), &info);
  workspace.pool = nullptr;
  if (header != Status::kOk) {
    REQUIRE(decode_exactly(wire, 10, &workspace).status == header, static_cast<int>(header));
    return;
  }
  REQUIRE(info.size_bytes <= static_cast<int64_t>(wire.size()), info.size_bytes);
  const int64_t other = info.numel == 10 ? 11 : 10;
  REQUIRE(decode_exactly(wire, other, &workspace).status == Status::kSizeMismatch);
  if (info.numel > kMostElements) return;
  Decoded first;
  for (size_t i = 0; i < names.size(); ++i) {
    set_implementation(names[i]);
    const Decoded found = decode_exactly(wire, info.numel, &workspace);
    if (i == 0) first = found;
    REQUIRE(found == first, i, static_cast<int>(found.status), static_cast<int>(first.status));
  }
  check_sums(wire, first, info.numel, &workspace);
  check_bodies(wire, info, first);
  if (!threads) return;
  set_implementation(names[0]);
  workspace.pool = &two_threads();
  // Of several errors any may be the one that is told.
  const Decoded shared = decode_exactly(wire, info.numel, &workspace);
  REQUIRE((shared.status == Status::kOk) == (first.status == Status::kOk),
          static_cast<int>(shared.status));
  REQUIRE(shared.bits == first.bits, info.numel);
}

}  // namespace
}  // namespace gct::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gct::fuzz;
  const std::vector<uint8_t> bytes(data, data + size);
  REQUIRE(gct::crc32c(data, size) == gct::crc32c_by_tables(data, size), size);
  check(bytes, false);
  if (size < gct::kSegmentHeaderBytes) return 0;
  const Wish wish(bytes);
  check(put_right(bytes, wish), wish.two_threads);
  return 0;
}
