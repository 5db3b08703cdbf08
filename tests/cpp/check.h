// All that a C++ test needs: CHECK(condition, value...) prints place, text and values when the
// condition is false, and goes on; main() ends with `return gct::test::result();`.
#pragma once

#include <cstdint>
#include <iostream>
#include <string>

namespace gct::test {

constexpr int64_t kPrinted = 20;  // failures shown in full; all are counted

inline int64_t checks = 0, failures = 0;

template <typename... Values>
void check(const char* file, int line, const char* text, bool ok, const Values&... values) {
  ++checks;
  if (ok || ++failures > kPrinted) return;
  std::cerr << file << ':' << line << ": CHECK(" << text << ") failed; values:";
  ((std::cerr << ' ' << +values), ...);
  std::cerr << '\n';
}

template <typename... Values>
void check_in(const char* file, int line, const char* text, const std::string& name, bool ok,
              const Values&... values) {
  if (!ok && failures < kPrinted) std::cerr << "in case: " << name << '\n';
  check(file, line, text, ok, values...);
}

// Exit status of the test. A test that checked nothing has failed.
inline int result() {
  std::cerr << checks << " checks, " << failures << " failures\n";
  return checks > 0 && failures == 0 ? 0 : 1;
}

// Random numbers that are the same everywhere (the standard's distributions aren't): Marsaglia's
// xorshift64*.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}

  uint64_t bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1dull;
  }
  uint64_t below(uint64_t n) { return (bits() >> 11) % n; }
  double unit() { return static_cast<double>(bits() >> 11) / 9007199254740992.0; }  // [0, 1)

 private:
  uint64_t state_;
};

}  // namespace gct::test

// Condition first, then any values worth seeing.
#define CHECK(...) gct::test::check(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
// The same with the name of a case before the values: CHECK_IN(name, condition, value...).
#define CHECK_IN(name, ...) gct::test::check_in(__FILE__, __LINE__, #__VA_ARGS__, name, __VA_ARGS__)
