// decode() from and to heap blocks of exactly the sizes that it is told, so that the address
// sanitizer sees one byte more.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "codec.h"

namespace gct::fuzz {

inline std::unique_ptr<uint8_t[]> exact_copy(const std::vector<uint8_t>& bytes) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[bytes.size()]);
  if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
  return copy;
}

struct Decoded {
  Status status = Status::kOk;
  std::vector<uint32_t> bits;  // of the values, NaNs all alike; none unless the status is kOk

  bool operator==(const Decoded& other) const {
    return status == other.status && bits == other.bits;
  }
};

// The bits that count, of n values.
inline std::vector<uint32_t> value_bits(const float* values, size_t n) {
  std::vector<uint32_t> bits(n);
  for (size_t i = 0; i < n; ++i)
    bits[i] = values[i] != values[i] ? 0x7fc00000u : float_bits(values[i]);
  return bits;
}

// start: what is in the output before, and whether to add to it; factor: of the decoded values.
inline Decoded decode_exactly(const std::vector<uint8_t>& wire, int64_t numel, Workspace* workspace,
                              const std::vector<float>* start = nullptr, float factor = 1) {
  const std::unique_ptr<uint8_t[]> input = exact_copy(wire);
  const size_t n = static_cast<size_t>(numel);
  std::unique_ptr<float[]> output(new float[n]());
  if (start != nullptr) std::copy(start->begin(), start->end(), output.get());
  Decoded result;
  result.status =
      decode(input.get(), wire.size(), output.get(), numel, start != nullptr, *workspace, factor);
  if (result.status == Status::kOk) result.bits = value_bits(output.get(), n);
  return result;
}

// Values unlike each other to add to.
inline std::vector<float> some_values(int64_t numel) {
  std::vector<float> values;
  for (int64_t i = 0; i < numel; ++i) values.push_back(0.25f * static_cast<float>(i % 9) - 0.5f);
  return values;
}

}  // namespace gct::fuzz
