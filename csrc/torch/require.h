#pragma once

#include <stdexcept>
#include <string>

namespace gct {

// Throws std::invalid_argument, a ValueError in Python, unless an argument is as it must be.
inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("gct: " + message);
}

}  // namespace gct
