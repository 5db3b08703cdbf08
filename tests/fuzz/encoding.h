// encode() of a case into a heap block of exactly the size that it is told, so that the address
// sanitizer sees one byte more.
#pragma once

#include <memory>
#include <vector>

#include "case.h"
#include "require.h"

namespace gct::fuzz {

struct Encoded {
  Status status = Status::kOk;
  std::vector<uint8_t> wire;  // none unless the status is kOk
};

inline Encoded encode_in(const Case& c, size_t capacity, Workspace* workspace) {
  std::unique_ptr<uint8_t[]> out(new uint8_t[capacity]());
  Encoded result;
  size_t written = 0;
  result.status = encode(c.params, c.input->view, out.get(), capacity, &written, *workspace);
  if (result.status != Status::kOk) return result;
  REQUIRE(written <= capacity, written, capacity);
  result.wire.assign(out.get(), out.get() + written);
  return result;
}

}  // namespace gct::fuzz
