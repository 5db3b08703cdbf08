// Room for the pieces under way: several threads encode them, each is placed behind the one before
// it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "cpu/pieces.h"

namespace gct {

class PieceRing {
 public:
  // `size` pieces may be under way. `outputs` is the memory, kept from segment to segment.
  PieceRing(size_t size, std::vector<PieceOutput>* outputs);

  // Piece i's output, once the piece that had its room is placed; nullptr after stop(). Pieces must
  // begin in rising order: a piece then waits for earlier ones alone.
  PieceOutput* begin(int64_t i);

  // Piece i is encoded. Who finishes a piece that others stand behind calls place(output) for them
  // all, in order: nobody has to at the end.
  template <typename F>
  void finish(int64_t i, F place) {
    const std::lock_guard<std::mutex> lock(mutex_);
    room_of(i).ready = true;
    const int64_t before = placed_;
    for (; room_of(placed_).ready; ++placed_) {
      place(room_of(placed_));
      room_of(placed_).ready = false;
    }
    if (placed_ > before) free_.notify_all();
  }

  // A piece failed: nobody waits for it.
  void stop();

 private:
  PieceOutput& room_of(int64_t i) { return outputs_[static_cast<size_t>(i) % size_]; }

  const size_t size_;
  std::vector<PieceOutput>& outputs_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable free_;
  int64_t placed_ = 0;  // pieces
  bool stopped_ = false;
};

}  // namespace gct
