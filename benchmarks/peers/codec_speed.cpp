// Times the codec, and htscodecs where it is installed, in one process; benchmarks/codec.py builds
// it, feeds it and reads what it prints.
//
//   codec_speed VALUES DTYPE REPEATS THREADS [CODES]
//   codec_speed VALUES DTYPE REPEATS THREADS --scaling
//
// VALUES: a file of elements of DTYPE (float32, bfloat16, float16). From the standard input it
// takes lines `kind bits allocation8 implementation` and prints a line of JSON for each: seconds of
// one call (median and best of the repeats), with a workspace and buffers that are reused, as the
// collectives do. At the end it prints a line for reading memory and, where CODES (a file of bytes)
// is given, one for htscodecs' 32-way order-0 rANS on these bytes.
//
// --scaling: one thread against THREADS, call by call in turn, and beside them work that needs
// nothing but the processor or the memory (thread_scaling.h). All seconds are printed.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "codec.h"
#include "core/convert.h"
#include "cpu/thread_pool.h"
#include "thread_scaling.h"

namespace {

using Bytes = std::vector<uint8_t>;

constexpr double kLeastSeconds = 0.005;  // of one repeat, so that the clock doesn't matter

double now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(time).count();
}

Bytes read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::cerr << "codec_speed: cannot read " << path << '\n';
    std::exit(1);
  }
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

template <typename F>
std::string times(int repeats, F call) {
  call();
  const double start = now();
  call();
  const int calls = std::max(1, static_cast<int>(kLeastSeconds / std::max(now() - start, 1e-7)));
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double begin = now();
    for (int j = 0; j < calls; ++j) call();
    seconds.push_back((now() - begin) / calls);
  }
  std::sort(seconds.begin(), seconds.end());
  std::ostringstream text;
  text << "{\"median\": " << seconds[seconds.size() / 2] << ", \"best\": " << seconds[0] << "}";
  return text.str();
}

// Fowler, Noll and Vo 1991: enough to see whether two results are the same.
uint64_t digest(const void* data, size_t size) {
  const uint8_t* p = static_cast<const uint8_t*>(data);
  uint64_t hash = 1469598103934665603ull;
  for (size_t i = 0; i < size; ++i) hash = (hash ^ p[i]) * 1099511628211ull;
  return hash;
}

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::cerr << "codec_speed: " << what << '\n';
  std::exit(1);
}

std::vector<float> floats(const Bytes& values, gct::DType dtype) {
  const size_t size = static_cast<size_t>(gct::dtype_bytes(dtype));
  std::vector<float> x(values.size() / size);
  for (size_t i = 0; i < x.size(); ++i) {
    if (dtype == gct::DType::kFloat32) {
      x[i] = gct::bits_float(gct::load_le<uint32_t>(&values[4 * i]));
    } else {
      const uint16_t h = gct::load_le<uint16_t>(&values[2 * i]);
      x[i] = dtype == gct::DType::kBFloat16 ? gct::bfloat16_to_float(h) : gct::float16_to_float(h);
    }
  }
  return x;
}

double snr_db(const std::vector<float>& x, const std::vector<float>& y) {
  double signal = 0, error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    signal += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    error += difference * difference;
  }
  return error > 0 ? std::min(10 * std::log10(signal / error), 999.0) : 999.0;
}

class Bench {
 public:
  Bench(Bytes values, gct::DType dtype, int repeats, int threads)
      : values_(std::move(values)),
        dtype_(dtype),
        repeats_(repeats),
        pool_(threads),
        x_(floats(values_, dtype)) {
    workspace_.pool = &pool_;
  }

  void codec(const std::string& kind, double bits, int allocation8, const std::string& name) {
    expect(gct::set_implementation(name), "no implementation " + name);
    const gct::CodecParams params = params_of(kind, bits, allocation8);
    const gct::Run run = whole_run();
    const gct::EncodeInput input = input_of(run);
    Bytes wire(gct::max_segment_bytes(params, input));
    std::vector<float> y(x_.size(), 0.0f);
    size_t size = 0;
    const auto encode = [&] {
      gct::encode(params, input, wire.data(), wire.size(), &size, workspace_);
    };
    const auto decode = [&](bool accumulate) {
      const gct::Status status =
          gct::decode(wire.data(), size, y.data(), run.numel, accumulate, workspace_);
      expect(status == gct::Status::kOk, gct::status_message(status));
    };
    const std::string encode_times = times(repeats_, encode);
    const std::string decode_times = times(repeats_, [&] { decode(false); });
    const uint64_t wire_digest = digest(wire.data(), size);
    const uint64_t value_digest = digest(y.data(), 4 * y.size());
    const double snr = snr_db(x_, y);
    const std::vector<float> decoded = y;
    std::fill(y.begin(), y.end(), 0.0f);
    decode(true);
    expect(y == decoded, "a sum of one is another value");  // -0 equals 0, and so it may be
    std::cout << "{\"name\": \"" << kind << "\", \"implementation\": \"" << name
              << "\", \"bytes\": " << size << ", \"snr_db\": " << snr << ", \"digest\": \""
              << wire_digest << ' ' << value_digest << "\", \"encode\": " << encode_times
              << ", \"decode\": " << decode_times
              << ", \"decode_add\": " << times(repeats_, [&] { decode(true); }) << "}" << std::endl;
  }

  // One thread and all in turn, with the controls in the same turns.
  void scaling(const std::string& kind, double bits, int allocation8, const std::string& name) {
    expect(gct::set_implementation(name), "no implementation " + name);
    const gct::CodecParams params = params_of(kind, bits, allocation8);
    const gct::Run run = whole_run();
    const gct::EncodeInput input = input_of(run);
    gct::Workspace alone;
    Bytes wire(gct::max_segment_bytes(params, input));
    std::vector<float> y(x_.size());
    size_t size = 0;
    const auto encode = [&](bool threaded) {
      const gct::Status status = gct::encode(params, input, wire.data(), wire.size(), &size,
                                             threaded ? workspace_ : alone);
      expect(status == gct::Status::kOk, gct::status_message(status));
    };
    const auto decode_add = [&](bool threaded) {
      const gct::Status status =
          gct::decode(wire.data(), size, y.data(), run.numel, true, threaded ? workspace_ : alone);
      expect(status == gct::Status::kOk, gct::status_message(status));
    };
    uint64_t digests[2][2];
    for (bool threaded : {false, true}) {
      encode(threaded);
      std::fill(y.begin(), y.end(), 0.0f);
      decode_add(threaded);
      digests[threaded][0] = digest(wire.data(), size);
      digests[threaded][1] = digest(y.data(), 4 * y.size());
    }
    expect(std::equal(digests[0], digests[0] + 2, digests[1]), "threads give another result");
    std::cout << "{\"name\": \"" << kind << "\", \"bytes\": " << size << ", \"seconds\": "
              << scaling::seconds({{"encode", encode}, {"decode_add", decode_add}}, repeats_,
                                  &pool_)
              << "}" << std::endl;
  }

  // The fastest of plain loops over 256 MiB, 8 bytes a time, which the compiler vectorizes.
  void read() {
    const std::vector<uint64_t> memory(1u << 25, 1);
    uint64_t sum = 0;
    const std::string seconds = times(repeats_, [&] {
      for (const uint64_t x : memory) sum += x;
    });
    expect(sum % memory.size() == 0, "reading went wrong");
    std::cout << "{\"name\": \"read\", \"bytes\": " << 8 * memory.size()
              << ", \"encode\": " << seconds << "}" << std::endl;
  }

  void htscodecs(Bytes codes) {
    using Compress = uint8_t* (*)(uint8_t*, unsigned, uint8_t*, unsigned*, int);
    using Uncompress = uint8_t* (*)(uint8_t*, unsigned, uint8_t*, unsigned*);
    using Bound = unsigned (*)(unsigned, int);
    void* library = dlopen("libhtscodecs.so.2", RTLD_NOW);
    if (library == nullptr) return;
    const auto bound = reinterpret_cast<Bound>(dlsym(library, "rans_compress_bound_4x16"));
    const auto compress = reinterpret_cast<Compress>(dlsym(library, "rans_compress_to_4x16"));
    const auto uncompress = reinterpret_cast<Uncompress>(dlsym(library, "rans_uncompress_to_4x16"));
    expect(bound != nullptr && compress != nullptr && uncompress != nullptr,
           "htscodecs lacks rANS 4x16");
    constexpr int kOrder0By32 = 0x04;
    const unsigned n = static_cast<unsigned>(codes.size());
    Bytes wire(bound(n, kOrder0By32)), back(codes.size());
    unsigned size = 0, count = 0;
    const std::string encode = times(repeats_, [&] {
      size = static_cast<unsigned>(wire.size());
      expect(compress(codes.data(), n, wire.data(), &size, kOrder0By32) != nullptr, "htscodecs");
    });
    const std::string decode = times(repeats_, [&] {
      count = n;
      expect(uncompress(wire.data(), size, back.data(), &count) != nullptr, "htscodecs");
    });
    expect(count == n && back == codes, "htscodecs gives other bytes back");
    std::cout << "{\"name\": \"htscodecs\", \"bytes\": " << size << ", \"encode\": " << encode
              << ", \"decode\": " << decode << "}" << std::endl;
  }

 private:
  static gct::CodecParams params_of(const std::string& kind, double bits, int allocation8) {
    gct::CodecParams params;
    params.kind = kind == "gg"      ? gct::Kind::kGG
                  : kind == "eg"    ? gct::Kind::kEG
                  : kind == "fixed" ? gct::Kind::kFixed
                                    : gct::Kind::kRaw;
    params.value = bits;
    params.allocation8 = allocation8;
    return params;
  }

  gct::Run whole_run() const {
    gct::Run run;
    run.data = values_.data();
    run.numel = static_cast<int64_t>(x_.size());
    return run;
  }

  gct::EncodeInput input_of(const gct::Run& run) const {
    gct::EncodeInput input;
    input.dtype = dtype_;
    input.runs = &run;
    input.num_runs = 1;
    return input;
  }

  const Bytes values_;
  const gct::DType dtype_;
  const int repeats_;
  gct::ThreadPool pool_;
  gct::Workspace workspace_;
  const std::vector<float> x_;
};

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 5 || argc == 6, "expected VALUES DTYPE REPEATS THREADS [CODES | --scaling]");
  const std::string name = argv[2];
  const gct::DType dtype = name == "bfloat16"  ? gct::DType::kBFloat16
                           : name == "float16" ? gct::DType::kFloat16
                                               : gct::DType::kFloat32;
  Bench bench(read_file(argv[1]), dtype, std::atoi(argv[3]), std::atoi(argv[4]));
  std::string kind, implementation;
  double bits = 0;
  int allocation8 = 0;
  const bool scaling = argc == 6 && std::string(argv[5]) == "--scaling";
  while (std::cin >> kind >> bits >> allocation8 >> implementation) {
    if (scaling) {
      bench.scaling(kind, bits, allocation8, implementation);
    } else {
      bench.codec(kind, bits, allocation8, implementation);
    }
  }
  if (scaling) return 0;
  bench.read();
  if (argc == 6) bench.htscodecs(read_file(argv[5]));
}
