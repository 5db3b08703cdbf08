#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "torch/link.h"

namespace gct {

// A fixed number of exchanges that slices take turns with: what bounds memory and how far the front
// thread runs ahead.
class ExchangeRing {
 public:
  explicit ExchangeRing(size_t exchanges);
  // Waits for a free one; null once closed.
  Exchange* acquire();
  void release(Exchange* exchange);
  void close();
  int64_t capacity_bytes() const;

 private:
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::mutex mutex_;
  std::condition_variable freed_;
  std::vector<Exchange*> free_;
  bool closed_ = false;
};

}  // namespace gct
