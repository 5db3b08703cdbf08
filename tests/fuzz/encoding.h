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
  std::vector<uint32_t> own;  // bits of what the encoder says that half of it is, or none
};

inline Encoded encode_in(const Case& c, size_t capacity, Workspace* workspace) {
  std::unique_ptr<uint8_t[]> out(new uint8_t[capacity]());
  Encoded result;
  size_t written = 0;
  const auto numel = static_cast<size_t>(c.input->numel());
  std::unique_ptr<float[]> values(new float[numel]());
  OwnValues own;
  own.out = values.get();
  own.factor = 0.5f;
  result.status =
      encode(c.params, c.input->view, out.get(), capacity, &written, *workspace, nullptr, &own);
  if (result.status != Status::kOk) return result;
  REQUIRE(written <= capacity, written, capacity);
  result.wire.assign(out.get(), out.get() + written);
  for (size_t i = 0; own.restored && i < numel; ++i) result.own.push_back(float_bits(values[i]));
  return result;
}

}  // namespace gct::fuzz
