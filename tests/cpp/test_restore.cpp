// What encode() says that its segment decodes to, against what it does decode to: the same bits, or
// no answer and nothing written.
#include <cstring>
#include <limits>

#include "check.h"
#include "codec.h"
#include "cpu/thread_pool.h"
#include "inputs.h"

namespace gct {
namespace {

using test::describe;
using test::high_effort;
using test::Input;
using test::make_matrix;
using test::make_values;
using test::params;
using test::unit_gain;
using test::value_kinds;
using test::Values;

constexpr float kUntouched = 12345.0f;

std::vector<CodecParams> settings() {
  std::vector<CodecParams> all = {params(Kind::kRaw, Target::kBits, 2),
                                  params(Kind::kFixed, Target::kBits, 4),
                                  params(Kind::kEG, Target::kBits, 3)};
  for (int allocation8 : {8, 4, 0}) {
    // From tables of one magnitude to those of 62, and blocks beyond.
    for (double bits : {0.3, 1.2, 2.0, 3.0, 4.0, 5.0, 6.0, 9.0, 40.0}) {
      all.push_back(params(Kind::kGG, Target::kBits, bits, allocation8));
      all.push_back(unit_gain(all.back()));
    }
    all.push_back(params(Kind::kGG, Target::kSnrDb, 12, allocation8));
    all.push_back(unit_gain(params(Kind::kGG, Target::kStep, 0.7, allocation8)));
    all.push_back(high_effort(params(Kind::kGG, Target::kBits, 2, allocation8)));
    all.push_back(params(Kind::kGG, Target::kBits, 2, allocation8, Rounding::kStochastic));
  }
  all.push_back(params(Kind::kGG, Target::kBits, 2, 0));
  all.back().max_rank = 8;
  return all;
}

struct Outcome {
  std::vector<uint8_t> wire;
  bool restored = false;
};

Outcome encode_to(const CodecParams& p, const EncodeInput& input, float factor, float* out,
                  ThreadPool* pool) {
  static Workspace workspace;
  workspace.pool = pool;
  Outcome result;
  result.wire.resize(slot_bytes(p, input));
  size_t written = 0;
  OwnValues own;
  own.out = out;
  own.factor = factor;
  const Status status =
      encode(p, input, result.wire.data(), result.wire.size(), &written, workspace, nullptr, &own);
  CHECK(status == Status::kOk, static_cast<int>(status));
  result.wire.resize(written);
  result.restored = own.restored;
  return result;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.empty()) return b.empty();
  return std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0;
}

// Whether there was an answer.
bool check(const std::string& name, const CodecParams& p, const Input& input, ThreadPool* pool,
           float factor = 1) {
  const size_t numel = input.values.floats.size();
  std::vector<float> values(numel, kUntouched), decoded(numel);
  const Outcome apart = encode_to(p, input.view, factor, values.data(), pool);
  static Workspace workspace;
  CHECK_IN(name,
           decode(apart.wire.data(), apart.wire.size(), decoded.data(), static_cast<int64_t>(numel),
                  false, workspace, factor) == Status::kOk,
           numel);
  for (float& value : decoded) value += 0.0f;  // there is no -0 among the encoder's
  const std::vector<float> expected =
      apart.restored ? decoded : std::vector<float>(numel, kUntouched);
  CHECK_IN(name, same_bits(values, expected), numel);

  // In the input's own place.
  if (input.view.dtype != DType::kFloat32) return apart.restored;
  std::vector<float> place = input.values.floats;
  std::vector<Run> runs = input.runs;
  float* data = place.data();
  for (Run& run : runs) {
    run.data = run.numel == 0 ? nullptr : data;
    data += run.numel;
  }
  const EncodeInput here = {DType::kFloat32, runs.data(), static_cast<int64_t>(runs.size())};
  const Outcome in_place = encode_to(p, here, factor, place.data(), pool);
  CHECK_IN(name, in_place.restored == apart.restored, numel);
  CHECK_IN(name, in_place.wire == apart.wire, numel);
  CHECK_IN(name, same_bits(place, apart.restored ? decoded : input.values.floats), numel);
  return apart.restored;
}

// The encoder falls back from high effort, and from low-rank parts, where they don't pay.
bool plain(const CodecParams& p) {
  return p.kind == Kind::kGG && p.effort == Effort::kNormal &&
         p.rounding == Rounding::kDeterministic && p.max_rank == 0;
}

void test_against_decode() {
  ThreadPool two(2);
  const std::vector<std::vector<int64_t>> layouts = {
      {}, {0}, {1}, {300}, {256, 0, 31, 700, -5, 1}, {140000, 260}};
  int possible = 0, restored = 0;
  for (const std::string& implementation : implementations()) {
    set_implementation(implementation);
    for (const CodecParams& p : settings()) {
      for (const test::ValueKind& kind : value_kinds()) {
        for (const std::vector<int64_t>& lengths : layouts) {
          int64_t numel = 0;
          for (int64_t length : lengths) numel += std::abs(length);
          // Two large ones are enough, and the slow encoder has none.
          const bool large = numel > 100000;
          if (large && (!plain(p) || p.value != 2)) continue;
          const Input input(make_values(kind, DType::kFloat32, numel, 7), lengths);
          const std::string name = implementation + ", " + kind.name + ", " + describe(p);
          const bool answer = check(name, p, input, large ? &two : nullptr);
          CHECK_IN(name, check(name, p, input, large ? &two : nullptr, 0.5f) == answer, numel);
          const bool never = p.kind != Kind::kGG || p.rounding == Rounding::kStochastic;
          CHECK_IN(name, !(never && answer), numel);
          possible += plain(p);
          restored += plain(p) && answer;
        }
      }
    }
  }
  // All but blocks with low bits aside: "relative" from 5.4 bits on, and single large blocks.
  CHECK(restored > 0.6 * possible && restored < possible, restored, possible);
}

void test_what_is_not_simple() {
  const CodecParams p = unit_gain(params(Kind::kGG, Target::kBits, 2));
  const Values values = make_values(value_kinds()[0], DType::kFloat32, 3000, 3);
  CHECK(check("plain", p, Input(values, {2000, -1000}), nullptr), 1);
  for (const float special : {std::numeric_limits<float>::quiet_NaN(), HUGE_VALF}) {
    for (const size_t at : {size_t{5}, size_t{2500}}) {  // in a coded run, in a raw one
      Values other;
      for (size_t i = 0; i < values.floats.size(); ++i)
        other.push(i == at ? static_cast<double>(special) : static_cast<double>(values.floats[i]));
      const bool simple = at == 2500 && !std::isnan(special);
      CHECK(check("special", p, Input(other, {2000, -1000}), nullptr) == simple, at, special);
    }
  }
  const Values half = make_values(value_kinds()[0], DType::kBFloat16, 3000, 3);
  CHECK(!check("bfloat16", p, Input(half, {3000}), nullptr), 1);
  // Columns whose scales differ by 6 octaves get a profile; with one step for all they pay.
  const Values matrix = make_matrix(DType::kFloat32, 40000, 100, 6, 1);
  CHECK(!check("matrix", params(Kind::kGG, Target::kBits, 2, 0), Input(matrix, {40000}, 100),
               nullptr),
        1);
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_against_decode();
  gct::test_what_is_not_simple();
  return gct::test::result();
}
