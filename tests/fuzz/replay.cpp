// main() for compilers without libFuzzer: each input of the folders and files named, once, and each
// damaged in some ways; the same in every run. libFuzzer's options (-...) are passed over.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "../cpp/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kDamages = 20;  // of each input

using Input = std::vector<uint8_t>;

std::vector<std::filesystem::path> files_of(const std::string& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(path)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());  // the system's order is none
  return files;
}

Input read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return Input(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

// From and to a heap block of exactly its size.
void run(const Input& input) {
  const Input exact(input);
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

void run_damaged(Input input, gct::test::Random* random) {
  if (input.empty()) return;
  for (uint64_t changes = 1 + random->below(3); changes > 0; --changes) {
    uint8_t& byte = input[random->below(input.size())];
    byte = static_cast<uint8_t>(random->below(2) == 0 ? byte ^ (1u << random->below(8))
                                                      : random->bits());
  }
  if (random->below(4) == 0) input.resize(random->below(input.size()) + 1);
  run(input);
}

}  // namespace

int main(int argc, char** argv) {
  gct::test::Random random(1);
  int inputs = 0;
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] == '-') continue;
    for (const auto& path : files_of(argv[i])) {
      const Input input = read(path);
      run(input);
      for (int j = 0; j < kDamages; ++j) run_damaged(input, &random);
      ++inputs;
    }
  }
  std::cerr << inputs << " inputs, " << inputs * kDamages << " damaged ones\n";
  return inputs > 0 ? 0 : 1;
}
