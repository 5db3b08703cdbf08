#include "cpu/piece_ring.h"

#include <algorithm>

namespace gct {

PieceRing::PieceRing(size_t size, std::vector<PieceOutput>* outputs)
    : size_(std::max<size_t>(1, size)), outputs_(*outputs) {
  if (outputs_.size() < size_) outputs_.resize(size_);
  for (PieceOutput& out : outputs_) out.ready = false;
}

PieceOutput* PieceRing::begin(int64_t i) {
  std::unique_lock<std::mutex> lock(mutex_);
  free_.wait(lock, [&] { return stopped_ || i < placed_ + static_cast<int64_t>(size_); });
  return stopped_ ? nullptr : &room_of(i);
}

void PieceRing::stop() {
  const std::lock_guard<std::mutex> lock(mutex_);
  stopped_ = true;
  free_.notify_all();
}

}  // namespace gct
