// What the engine is asked to do and how it answers.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "codec.h"
#include "torch/layout.h"

namespace gct {

enum class Collective { kAllReduce, kReduceScatter, kAllGather };

enum class Algorithm {
  kAuto,     // the cheaper one of the two for this size and world
  kOneShot,  // everybody gets everybody's segment: one quantization, W / 2 times the bytes of two
             // shots
  kTwoShot,  // every rank reduces its chunk and sends the result round: two quantizations, bytes
             // flat in W
};

// Of "auto", "one_shot" or "two_shot"; throws std::invalid_argument for another name.
Algorithm parse_algorithm(const std::string& name);

// What kAuto means for a tensor; other choices stay what they are. The same on all ranks.
Algorithm choose_algorithm(Algorithm asked, const CodecParams& codec, DType dtype, int64_t numel,
                           int world);

// Adds up over the engine's life; read from any thread.
struct Counters {
  std::atomic<int64_t> jobs{0};
  std::atomic<int64_t> raw_bytes{0};  // what a ring without compression would have sent
  std::atomic<int64_t> encoded_numel{
      0};  // elements that were encoded, each as often as that happened
  std::atomic<int64_t> encoded_bytes{0};  // size of the slots they went to
  std::atomic<int64_t> nonfinite_runs{0};
  std::atomic<int64_t> encode_ns{0};
  std::atomic<int64_t> decode_ns{0};  // decoding and adding
  std::atomic<int64_t> wait_ns{0};    // all threads' waits for the process group
};

// Called once, from the engine's tail thread. `error` is empty if the result is in place; `fatal`:
// every later job fails too. If it isn't fatal, either nothing was sent, or a checksum was wrong,
// which the other ranks may not know: the result is worthless then. `run_stats`: float32 [runs, 4],
// scale and shape of each run as this rank's encoder saw it, 0 where it saw none; where the job is
// probed also bits an element and squared error over squared values, else NaN.
using OnDone =
    std::function<void(const std::string& error, bool fatal, const at::Tensor& run_stats)>;

struct JobSpec {
  Collective collective = Collective::kAllReduce;
  Algorithm algorithm = Algorithm::kAuto;
  bool mean = false;  // divide the sum by the number of ranks
  at::Tensor
      input;  // CPU, contiguous, a dtype of the codec; all_reduce: also where the result goes
  at::Tensor
      output;  // reduce_scatter: numel / W, all_gather: numel * W elements; all_reduce: undefined
  at::Tensor residual;  // all_reduce with error feedback: float32, numel elements; else undefined
  std::vector<RunShape> runs;  // of the input
  CodecParams codec;
  uint64_t seed = 0;      // differs from job to job; the same on all ranks
  bool probe = false;     // measure bits and error of each run, on this rank alone
  bool checksum = false;  // behind every segment; the same on all ranks
  std::string name;       // for messages: "bucket 3 of step 12"
  // Not empty: all that must be the same on all ranks, in words; compared before anything is sent.
  std::string call;
  OnDone on_done;
};

// Mean scale and shape of each run, weighted by the elements that were encoded, and what a probe
// found: sums of bits, squared errors and squared values.
struct RunAverages {
  std::vector<double> weight, scale, shape;
  std::vector<double> bits, error, signal;
  bool probed = false;

  explicit RunAverages(int64_t runs = 0);
  void add(const std::vector<Run>& parts, const std::vector<int64_t>& index,
           const std::vector<RunStats>& stats);
};

// A job in the engine: what follows from its spec, and what its threads note down.
struct Job {
  Job(JobSpec spec, int world);

  JobSpec spec;
  RunTable runs;
  DType dtype;
  int64_t numel = 0;         // of the input
  int64_t extent = 0;        // elements that slices cut up: numel, or numel / W for reduce_scatter
  bool in_place = false;     // float32: results are computed in the tensor itself
  bool exact = false;        // float32 as it is crosses the wire, without a segment around it
  bool slots_known = false;  // message sizes follow from the layout, no exchange of sizes
  std::string refusal;  // not empty: nothing was sent, and this is why; front thread, then others
  // Not empty: a checksum was wrong, and whose.
  std::string sent_damage;    // of what the ranks sent; back thread
  std::string result_damage;  // of a result; tail thread
  RunAverages sent;           // of this rank's own values; front thread
  RunAverages reduced;        // of the chunks that it owns; back thread

  std::promise<void> ended;

  const std::string& damage() const { return sent_damage.empty() ? result_damage : sent_damage; }
  bool two_shot() const { return spec.algorithm == Algorithm::kTwoShot; }
  bool has_residual() const { return spec.residual.defined(); }
  float* residual_at(int64_t element) const { return spec.residual.data_ptr<float>() + element; }
  void* input_at(int64_t element) const { return at_element(spec.input, element); }
  // Where results go: the output, or the input if there is none.
  void* result_at(int64_t element) const;

  at::Tensor run_stats() const;

 private:
  static void* at_element(const at::Tensor& tensor, int64_t element);
};

}  // namespace gct
