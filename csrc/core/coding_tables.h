// Run-time forms of the generated tables, as plain memory.
#pragma once

#include "core/rans.h"

namespace gct {

struct EncodeTable {
  EncodeEntry entry[kMaxSymbols];
  uint16_t cost[kMaxSymbols];  // code length in 1/4096 bit
};

struct DecodeTable {
  uint32_t slot[kProbTotal];
};

struct LevelTable {
  float level[128];  // by symbol, signed; 0 for the escape
};

}  // namespace gct
