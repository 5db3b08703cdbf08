// What fuzz targets state: REQUIRE(condition, value...) prints place, text and values where the
// condition is false, and ends the process, which a fuzzer takes for a find.
#pragma once

#include <cstdlib>
#include <iostream>

namespace gct::fuzz {

template <typename... Values>
void require(const char* file, int line, const char* text, bool ok, const Values&... values) {
  if (ok) return;
  std::cerr << file << ':' << line << ": REQUIRE(" << text << ") failed; values:";
  ((std::cerr << ' ' << +values), ...);
  std::cerr << std::endl;
  std::abort();
}

}  // namespace gct::fuzz

#define REQUIRE(...) gct::fuzz::require(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
