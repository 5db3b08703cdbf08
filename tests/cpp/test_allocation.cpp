// In the steady state nothing is allocated: encoding and decoding again with the same Workspace,
// every kind, target and implementation, alone and on a pool's threads. What is left is named
// below.
#include <atomic>
#include <cstdlib>
#include <new>

#include "check.h"
#include "codec.h"
#include "cpu/thread_pool.h"
#include "inputs.h"

namespace {

std::atomic<int64_t> allocations{0};

}  // namespace

void* operator new(size_t size) {
  ++allocations;
  void* p = std::malloc(size > 0 ? size : 1);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }

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

// Of one call each, after others of the same kind.
struct Count {
  int64_t encode = 0, decode = 0, add = 0;
};

class Coder {
 public:
  Coder(const CodecParams& p, const Input& input, ThreadPool* pool)
      : params_(p),
        input_(input),
        wire_(max_segment_bytes(p, input.view)),
        values_(static_cast<size_t>(input.numel())) {
    workspace_.pool = pool;
  }

  Count round() {
    Count count;
    count.encode = counted([&] {
      return encode(params_, input_.view, wire_.data(), wire_.size(), &written_, workspace_);
    });
    count.decode = counted([&] { return decode_values(false); });
    count.add = counted([&] { return decode_values(true); });
    return count;
  }

 private:
  Status decode_values(bool accumulate) {
    return decode(wire_.data(), written_, values_.data(), input_.numel(), accumulate, workspace_);
  }

  template <typename F>
  int64_t counted(F f) {
    const int64_t before = allocations;
    const Status status = f();
    const int64_t count = allocations - before;
    CHECK(status == Status::kOk, static_cast<int>(status));
    return count;
  }

  CodecParams params_;
  const Input& input_;
  std::vector<uint8_t> wire_;
  std::vector<float> values_;
  size_t written_ = 0;
  Workspace workspace_;
};

Count count(const CodecParams& p, const Input& input, ThreadPool* pool) {
  Coder coder(p, input, pool);
  const Count first = coder.round();
  // Otherwise nothing was counted at all: buffers have to come from somewhere.
  CHECK_IN(describe(p), first.encode > 0, first.encode);
  return coder.round();
}

std::vector<CodecParams> settings() {
  std::vector<CodecParams> all = {params(Kind::kRaw, Target::kBits, 2)};
  for (double bits : {1.0, 4.0, 8.0}) all.push_back(params(Kind::kFixed, Target::kBits, bits));
  for (Kind kind : {Kind::kGG, Kind::kEG}) {
    for (int allocation8 : {0, 4, 8}) {
      all.push_back(params(kind, Target::kBits, 2, allocation8));
      all.push_back(params(kind, Target::kSnrDb, 12, allocation8));
      all.push_back(params(kind, Target::kStep, 0.01, allocation8));
      all.push_back(unit_gain(params(kind, Target::kBits, 2, allocation8)));
      all.push_back(params(kind, Target::kBits, 3, allocation8, Rounding::kStochastic));
    }
  }
  for (int allocation8 : {0, 8}) {
    for (Target target : {Target::kBits, Target::kSnrDb, Target::kStep}) {
      const double value = target == Target::kBits ? 2 : target == Target::kSnrDb ? 12 : 0.01;
      all.push_back(high_effort(params(Kind::kGG, target, value, allocation8)));
    }
  }
  return all;
}

void check_none(const std::string& name, const Count& c) {
  CHECK_IN(name, c.encode == 0, c.encode);
  CHECK_IN(name, c.decode == 0, c.decode);
  CHECK_IN(name, c.add == 0, c.add);
}

// Parameters of all sorts, several pieces, and matrices that get column profiles.
void test_no_allocation() {
  ThreadPool two(2);
  const Input values(make_values(value_kinds()[4], DType::kBFloat16, 200000, 1),
                     {170000, -1000, 0, 1, 28999});
  const Input matrix(make_matrix(DType::kFloat32, 30000, 300, 6, 2), {20000, 10000}, 300);
  for (const std::string& implementation : {implementations().front(), std::string("scalar")}) {
    CHECK(set_implementation(implementation));
    for (const CodecParams& p : settings()) {
      for (ThreadPool* pool : {static_cast<ThreadPool*>(nullptr), &two}) {
        const std::string name =
            implementation + ", " + describe(p) + (pool == nullptr ? ", alone" : ", two threads");
        check_none(name + ", values", count(p, values, pool));
        check_none(name + ", matrix", count(p, matrix, pool));
      }
    }
  }
}

// Encoding with low-rank parts does allocate: factorizations, trial residuals and the factors' own
// segment. Decoding them doesn't.
void test_low_rank() {
  ThreadPool two(2);
  test::Values values;
  test::Random random(3);
  for (int i = 0; i < 40000; ++i)
    values.push((i / 200 % 17 - 8) * (i % 200 % 13 - 6) + 0.1 * test::gaussian(&random));
  const Input matrix(values, {40000}, 200);
  CodecParams p = params(Kind::kGG, Target::kSnrDb, 12, 0);
  p.max_rank = 4;
  for (ThreadPool* pool : {static_cast<ThreadPool*>(nullptr), &two}) {
    const Count c = count(p, matrix, pool);
    CHECK(c.encode > 0, c.encode);  // else the comment above is out of date, or there is no part
    CHECK(c.decode == 0 && c.add == 0, c.decode, c.add);
  }
}

}  // namespace
}  // namespace gct

int main() {
  gct::test_no_allocation();
  gct::test_low_rank();
  return gct::test::result();
}
