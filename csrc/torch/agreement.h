// Whether all ranks make the same call. Where they don't, they expect messages of different sizes,
// which Gloo answers by ending the process.
#pragma once

#include <string>

#include "torch/link.h"

namespace gct {

// One comparison at a time; between start() and finish() the caller can do something else.
class Agreement {
 public:
  // Bytes to each other rank, where all agree.
  static constexpr int64_t kBytes = 8;

  // Begins to tell the other ranks about this one's call. `call` says all that has to be the same.
  void start(const std::string& call, Link& link);

  // Waits for the others. Empty if all make the same call, else a sentence that quotes two of them;
  // it isn't empty on any rank then.
  std::string finish(Link& link);

  int64_t capacity_bytes() const { return exchange_.capacity_bytes(); }

 private:
  void tell(const void* message, int64_t bytes, Link& link);
  std::string explain(Link& link);

  std::string mine_;
  Exchange exchange_;
};

}  // namespace gct
