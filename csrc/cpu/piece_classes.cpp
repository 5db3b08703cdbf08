#include "cpu/piece_classes.h"

#include <algorithm>

#include "core/rate_target.h"
#include "cpu/block_symbols.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace gct {
namespace {

// From how many pieces on threads share them: fewer are done before a thread is awake.
constexpr int64_t kPiecesForThreads = 32;

ThreadPool* pool_for(const EncodePlan& plan) {
  const bool many = plan.coded_blocks >= kPiecesForThreads << kPieceBlocksLog2;
  return many ? plan.ws->pool : nullptr;
}

// f(first block, end, worker) for each piece, on the pool's threads if there is a pool.
template <typename F>
void for_each_piece(const EncodePlan& plan, ThreadPool* pool, F f) {
  const auto body = [&](int64_t piece, int worker) {
    const int64_t begin = piece << kPieceBlocksLog2;
    f(begin, std::min(begin + (int64_t{1} << kPieceBlocksLog2), plan.coded_blocks), worker);
  };
  parallel_for(pool, div_up(plan.coded_blocks, int64_t{1} << kPieceBlocksLog2), body);
}

void skip_zero_blocks(EncodePlan* plan, int64_t begin, int64_t end) {
  float scratch[kBlock];
  uint8_t symbols[kBlock];
  BlockSetup setup;
  int16_t* classes = plan->ws->classes.data();
  for_each_block(*plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    const RunCode& run = plan->runs[r].header.code;
    if (classes[b] == kZeroClass || class_ratio(run, classes[b]) > 4 * kSkipBelow) return;
    if (!setup.prepare(*plan, {r, local, n, classes[b]}, run, plan->log2_step)) return;
    const float* x =
        load_floats(plan->input->runs[r], plan->input->dtype, local * kBlock, n, scratch);
    kernels().quantize(x, n, setup.quantizer, symbols);
    if (std::all_of(symbols, symbols + n, [](uint8_t s) { return s == 0; }))
      classes[b] = kZeroClass;
  });
}

// Adds a piece's class symbols to histograms, one a run.
void count_symbols(const EncodePlan& plan, int64_t begin, int64_t end, int64_t* histograms) {
  ClassPredictor predictor(plan);
  const int16_t* classes = plan.ws->classes.data();
  for_each_block(plan, begin, end, [&](size_t r, int64_t, int, int64_t b) {
    predictor.next(r, classes[b], [&](int symbol, int) {
      ++histograms[r * kClassSymbols + static_cast<size_t>(symbol)];
    });
  });
}

struct ModelChoice {
  uint8_t model;
  int64_t cost;  // of all class symbols of a run, in 1/4096 bit
};

ModelChoice best_class_model(const int64_t* histogram) {
  ModelChoice best = {0, INT64_MAX};
  for (int model = 0; model < tables::kNumClassModels; ++model) {
    const EncodeTable& table = class_encode_table(model);
    int64_t cost = 0;
    for (int s = 0; s < kClassSymbols; ++s) cost += histogram[s] * table.cost[s];
    if (cost < best.cost) best = {static_cast<uint8_t>(model), cost};
  }
  return best;
}

// Sets the runs' models; bits of all classes.
double choose_class_models(const int64_t* histograms, EncodePlan* plan) {
  int64_t cost = 0;
  for (size_t r = 0; r < plan->runs.size(); ++r) {
    if (plan->runs[r].header.mode != RunMode::kCoded) continue;
    const ModelChoice choice = best_class_model(histograms + r * kClassSymbols);
    plan->runs[r].header.model = choice.model;
    cost += choice.cost;
  }
  return static_cast<double>(cost) / 4096;
}

// Calls prepare(first block, end) for each piece before its symbols are counted.
template <typename F>
double choose_class_models_after(F prepare, EncodePlan* plan) {
  ThreadPool* pool = pool_for(*plan);
  const size_t size = plan->runs.size() * kClassSymbols;
  const auto workers = static_cast<size_t>(worker_count(pool));
  std::vector<int64_t>& histograms = plan->ws->scratch().class_histograms;
  histograms.assign(workers * size, 0);
  for_each_piece(*plan, pool, [&](int64_t begin, int64_t end, int worker) {
    prepare(begin, end);
    count_symbols(*plan, begin, end, histograms.data() + static_cast<size_t>(worker) * size);
  });
  for (size_t i = size; i < histograms.size(); ++i) histograms[i % size] += histograms[i];
  return choose_class_models(histograms.data(), plan);
}

}  // namespace

double class_bits(EncodePlan* plan) {
  return choose_class_models_after([](int64_t, int64_t) {}, plan);
}

void prepare_classes(EncodePlan* plan) {
  choose_class_models_after(
      [&](int64_t begin, int64_t end) {
        assign_classes(begin, end, plan);
        skip_zero_blocks(plan, begin, end);
      },
      plan);
}

}  // namespace gct
