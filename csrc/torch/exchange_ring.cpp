#include "torch/exchange_ring.h"

namespace gct {

ExchangeRing::ExchangeRing(size_t exchanges) {
  for (size_t i = 0; i < exchanges; ++i) {
    exchanges_.push_back(std::make_unique<Exchange>());
    free_.push_back(exchanges_.back().get());
  }
}

Exchange* ExchangeRing::acquire() {
  std::unique_lock<std::mutex> lock(mutex_);
  freed_.wait(lock, [&] { return closed_ || !free_.empty(); });
  if (closed_) return nullptr;
  Exchange* exchange = free_.back();
  free_.pop_back();
  return exchange;
}

void ExchangeRing::release(Exchange* exchange) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(exchange);
  }
  freed_.notify_one();
}

void ExchangeRing::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  freed_.notify_all();
}

int64_t ExchangeRing::capacity_bytes() const {
  int64_t bytes = 0;
  for (const auto& exchange : exchanges_) bytes += exchange->capacity_bytes();
  return bytes;
}

}  // namespace gct
