// Several threads that encode and decode at once, with one pool among them: what an engine's two
// threads do, and several engines. Made for ThreadSanitizer.
#include <thread>
#include <vector>

#include "check.h"
#include "codec.h"
#include "cpu/thread_pool.h"

namespace {

using namespace gct;

constexpr int64_t kNumel = 100'000;
constexpr int kThreads = 5;
constexpr int kRounds = 5;

std::vector<float> values_of(uint64_t seed, int64_t numel = kNumel) {
  test::Random random(seed);
  std::vector<float> values(static_cast<size_t>(numel));
  for (float& value : values) value = static_cast<float>((random.unit() - 0.5) * random.unit());
  return values;
}

std::vector<uint8_t> encode_all(const std::vector<float>& values, const CodecParams& params,
                                Workspace& workspace) {
  Run run;
  run.data = values.data();
  run.numel = static_cast<int64_t>(values.size());
  run.columns = 250;
  EncodeInput input;
  input.runs = &run;
  input.num_runs = 1;
  std::vector<uint8_t> wire(max_segment_bytes(params, input));
  size_t written = 0;
  const Status status = encode(params, input, wire.data(), wire.size(), &written, workspace);
  wire.resize(status == Status::kOk ? written : 0);
  return wire;
}

std::vector<float> decode_all(const std::vector<uint8_t>& wire, Workspace& workspace) {
  std::vector<float> values(kNumel);
  const Status status =
      decode(wire.data(), wire.size(), values.data(), kNumel, /*accumulate=*/false, workspace);
  if (status != Status::kOk) values.clear();
  return values;
}

// CHECK is for one thread alone: nothing here where something failed.
struct Found {
  std::vector<uint8_t> wire;
  std::vector<float> values;
};

CodecParams params_of(int thread) {
  CodecParams params;
  params.kind = thread % 2 == 0 ? Kind::kGG : Kind::kEG;
  if (thread >= 2) {
    params.allocation8 = 0;
    params.max_rank = 4;
  }
  if (thread == 4) params.effort = Effort::kHigh;
  return params;
}

void code(int thread, ThreadPool* pool, Found* found) {
  Workspace workspace;
  workspace.pool = pool;
  const std::vector<float> values = values_of(static_cast<uint64_t>(thread));
  found->wire = encode_all(values, params_of(thread), workspace);
  found->values = decode_all(found->wire, workspace);
}

void test_a_shared_pool() {
  std::vector<Found> alone(kThreads);
  for (int thread = 0; thread < kThreads; ++thread) code(thread, nullptr, &alone[thread]);
  ThreadPool pool(3);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<Found> together(kThreads);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back(code, thread, &pool, &together[thread]);
    }
    for (std::thread& thread : threads) thread.join();
    for (int thread = 0; thread < kThreads; ++thread) {
      CHECK(!together[thread].wire.empty() && !together[thread].values.empty(), round, thread);
      CHECK(together[thread].wire == alone[thread].wire, round, thread);
      CHECK(together[thread].values == alone[thread].values, round, thread);
    }
  }
}

// Enough pieces for threads to share all that they can.
void test_many_pieces() {
  const std::vector<float> values = values_of(9, 33 * 65536);
  Workspace alone, threaded;
  ThreadPool pool(3);
  threaded.pool = &pool;
  for (int kind : {0, 1}) {
    const std::vector<uint8_t> wire = encode_all(values, params_of(kind), alone);
    CHECK(!wire.empty() && encode_all(values, params_of(kind), threaded) == wire, kind);
  }
}

}  // namespace

int main() {
  test_a_shared_pool();
  test_many_pieces();
  return gct::test::result();
}
