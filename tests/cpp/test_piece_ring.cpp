// Pieces of several threads: placed once each and in order, never two in one room, no one waits for
// a piece that failed. Made for ThreadSanitizer, too.
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/piece_ring.h"
#include "cpu/thread_pool.h"

namespace {

using namespace gct;

constexpr int64_t kPieces = 300;

// Some pieces take longer than all that could be under way meanwhile.
void work_on(int64_t piece) {
  if (piece % 37 == 5) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

void test_order(int threads, size_t size) {
  ThreadPool pool(threads);
  std::vector<PieceOutput> outputs;
  PieceRing ring(size, &outputs);
  std::vector<double> placed;
  std::atomic<int64_t> begun_too_early{0};
  std::atomic<int64_t> num_placed{0};
  pool.parallel_for(kPieces, [&](int64_t i, int) {
    PieceOutput* out = ring.begin(i);
    if (i >= num_placed.load() + static_cast<int64_t>(size)) ++begun_too_early;
    out->model_bits = static_cast<double>(i);
    work_on(i);
    ring.finish(i, [&](const PieceOutput& piece) {
      placed.push_back(piece.model_bits);
      ++num_placed;
    });
  });
  CHECK(placed.size() == kPieces, placed.size(), threads, size);
  for (size_t i = 0; i < placed.size(); ++i)
    CHECK(placed[i] == static_cast<double>(i), placed[i], i, threads, size);
  CHECK(begun_too_early == 0, begun_too_early.load(), threads, size);
  CHECK(outputs.size() == size, outputs.size(), size);
}

// The first piece fails while others wait for its room.
void test_failure() {
  ThreadPool pool(3);
  std::vector<PieceOutput> outputs;
  PieceRing ring(2, &outputs);
  bool caught = false;
  try {
    pool.parallel_for(kPieces, [&](int64_t i, int) {
      if (ring.begin(i) == nullptr) return;
      if (i == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        ring.stop();
        throw std::runtime_error("piece 0");
      }
      ring.finish(i, [](const PieceOutput&) {});
    });
  } catch (const std::runtime_error&) {
    caught = true;
  }
  CHECK(caught, caught);
}

}  // namespace

int main() {
  for (const int threads : {1, 2, 4}) {
    for (const size_t size : {1, 3, 16}) test_order(threads, size);
  }
  test_failure();
  return gct::test::result();
}
