// All run-time tables side by side in host memory.
#pragma once

#include <vector>

#include "cuda/batch.h"

namespace gct::gpu {

struct HostTables {
  std::vector<EncodeTable> encode, class_encode;
  std::vector<DecodeTable> decode, class_decode;
  std::vector<LevelTable> levels;
  std::vector<float> fixed_levels, fixed_thresholds;

  HostTables();
};

}  // namespace gct::gpu
