// All implementations of this machine write the same bytes and read the same bits, from any values,
// parameters and layout, and from a message that was damaged.
#include "decoding.h"
#include "encoding.h"
#include "require.h"

namespace gct::fuzz {
namespace {

struct Everything {
  Encoded encoded;
  Decoded plain, sums, halves, damaged;
};

Everything run(const Case& c, const std::string& implementation, size_t at, uint8_t flip) {
  REQUIRE(set_implementation(implementation));
  static Workspace workspace;
  const int64_t numel = c.input->numel();
  Everything result;
  result.encoded = encode_in(c, max_segment_bytes(c.params, c.input->view), &workspace);
  std::vector<uint8_t> wire = result.encoded.wire;
  if (wire.empty()) return result;
  const std::vector<float> start = some_values(numel), zeros(start.size());
  result.plain = decode_exactly(wire, numel, &workspace);
  result.sums = decode_exactly(wire, numel, &workspace, &start);
  result.halves = decode_exactly(wire, numel, &workspace, &zeros, 0.5f);
  wire[at % wire.size()] ^= flip;
  result.damaged = decode_exactly(wire, numel, &workspace);
  return result;
}

}  // namespace
}  // namespace gct::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gct::fuzz;
  static const std::vector<std::string> names = gct::implementations();
  Bytes in(data, size);
  const size_t at = in.u32();
  const uint8_t flip = in.byte();
  const Case c(size < 5 ? nullptr : data + 5, in.left());
  const Everything reference = run(c, names.back(), at, flip);
  const std::vector<uint32_t>& own = reference.encoded.own;
  REQUIRE(own.empty() || own == reference.halves.bits, own.size());
  for (size_t i = 0; i + 1 < names.size(); ++i) {
    const Everything found = run(c, names[i], at, flip);
    REQUIRE(found.encoded.status == reference.encoded.status, i);
    REQUIRE(found.encoded.wire == reference.encoded.wire, i, reference.encoded.wire.size());
    REQUIRE(found.encoded.own == reference.encoded.own, i);
    REQUIRE(found.plain == reference.plain, i);
    REQUIRE(found.sums == reference.sums, i);
    REQUIRE(found.halves == reference.halves, i);
    REQUIRE(found.damaged == reference.damaged, i);
  }
  return 0;
}
