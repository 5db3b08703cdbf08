#include <algorithm>

#include "cpu/block_symbols.h"
#include "cpu/pieces.h"
#include "cpu/rate.h"

namespace gct {
namespace {

// Class symbols: 0 zero block, 1 escape, 2.. the difference to the last coded block's class.
constexpr int kZeroSymbol = 0;
constexpr int kEscapeSymbol = 1;
constexpr int kFirstDelta = 2;
constexpr int kClassSymbols = 2 * tables::kClassDeltaMax + 3;

int class_symbol(int scale_class, int predicted) {
  const int delta = scale_class - predicted;
  if (delta < -tables::kClassDeltaMax || delta > tables::kClassDeltaMax) return kEscapeSymbol;
  return kFirstDelta + tables::kClassDeltaMax + delta;
}

// Turns classes into symbols, predicting each from the last coded block of the same run and piece.
class ClassPredictor {
 public:
  explicit ClassPredictor(const EncodePlan& plan) : plan_(plan) {}

  // f(symbol, difference to the prediction) for one block; blocks come in order.
  template <typename F>
  void next(size_t run, int scale_class, F f) {
    if (!started_ || run != run_) predicted_ = plan_.runs[run].header.base_class;
    started_ = true;
    run_ = run;
    if (scale_class == kZeroClass) {
      f(kZeroSymbol, 0);
      return;
    }
    const int delta = scale_class - predicted_;
    f(class_symbol(scale_class, predicted_), delta);
    predicted_ = scale_class;
  }

 private:
  const EncodePlan& plan_;
  bool started_ = false;
  size_t run_ = 0;
  int predicted_ = 0;
};

// Code and quantizer of a block by the plan's step; false for a zero block.
bool plan_block(const EncodePlan& plan, const BlockPlace& place, BlockCode* code, Quantizer* q) {
  if (place.scale_class == kZeroClass ||
      !block_code(plan.runs[place.run].header.code, place.scale_class, code))
    return false;
  *q = block_quantizer(plan, place, plan.log2_step, code->step);
  q->magnitudes = table_magnitudes(code->table);
  return true;
}

// Blocks this far under their step usually quantize to zeros; finding out costs more than it saves
// above.
constexpr int kSkipBelow = -8;  // table t, in quarter octaves

void skip_zero_blocks(EncodePlan* plan) {
  float scratch[kBlock];
  uint8_t symbols[kBlock];
  int16_t* classes = plan->ws->classes.data();
  for_each_block(*plan, 0, plan->coded_blocks, [&](size_t r, int64_t local, int n, int64_t b) {
    BlockCode code;
    Quantizer q;
    const RunCode& run = plan->runs[r].header.code;
    if (classes[b] == kZeroClass || class_ratio(run, classes[b]) > 4 * kSkipBelow) return;
    if (!plan_block(*plan, {r, local, n, classes[b]}, &code, &q)) return;
    const float* x =
        load_floats(plan->input->runs[r], plan->input->dtype, local * kBlock, n, scratch);
    kernels().quantize(x, n, q, symbols);
    if (std::all_of(symbols, symbols + n, [](uint8_t s) { return s == 0; }))
      classes[b] = kZeroClass;
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

double choose_class_models(EncodePlan* plan) {
  std::vector<int64_t> histogram(plan->runs.size() * kClassSymbols, 0);
  const int64_t piece = int64_t{1} << kPieceBlocksLog2;
  for (int64_t begin = 0; begin < plan->coded_blocks; begin += piece) {
    ClassPredictor predictor(*plan);
    const int64_t end = std::min(begin + piece, plan->coded_blocks);
    for_each_block(*plan, begin, end, [&](size_t r, int64_t, int, int64_t b) {
      predictor.next(r, plan->ws->classes[static_cast<size_t>(b)], [&](int symbol, int) {
        ++histogram[r * kClassSymbols + static_cast<size_t>(symbol)];
      });
    });
  }
  int64_t cost = 0;
  for (size_t r = 0; r < plan->runs.size(); ++r) {
    if (plan->runs[r].header.mode != RunMode::kCoded) continue;
    const ModelChoice choice = best_class_model(&histogram[r * kClassSymbols]);
    plan->runs[r].header.model = choice.model;
    cost += choice.cost;
  }
  return static_cast<double>(cost) / 4096;
}

// A block of the piece being encoded, kept for the backward pass.
struct CodedBlock {
  int n;
  int table;  // -1: zero block, no symbols
  uint8_t class_symbol;
  uint8_t model;
};

void forward_classes(const EncodePlan& plan, int64_t begin, int64_t end,
                     std::vector<CodedBlock>* blocks, BitWriter* extra) {
  ClassPredictor predictor(plan);
  for_each_block(plan, begin, end, [&](size_t r, int64_t, int n, int64_t b) {
    predictor.next(r, plan.ws->classes[static_cast<size_t>(b)], [&](int symbol, int delta) {
      blocks->push_back({n, -1, static_cast<uint8_t>(symbol), plan.runs[r].header.model});
      if (symbol == kEscapeSymbol) put_golomb(extra, zigzag(delta), 3);
    });
  });
}

void forward_symbols(const EncodePlan& plan, int64_t begin, int64_t end,
                     std::vector<CodedBlock>* blocks, PieceOutput* out, BitWriter* extra) {
  float scratch[kBlock];
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    const int c = plan.ws->classes[static_cast<size_t>(b)];
    BlockCode code;
    Quantizer q;
    if (!plan_block(plan, {r, local, n, c}, &code, &q)) return;
    (*blocks)[static_cast<size_t>(b - begin)].table = code.table;
    const float* x =
        load_floats(plan.input->runs[r], plan.input->dtype, local * kBlock, n, scratch);
    make_symbols(x, n, q, code, &out->symbols[static_cast<size_t>(b - begin) * kBlock], extra);
  });
}

double ideal_bits(const std::vector<CodedBlock>& blocks, const uint8_t* symbols) {
  int64_t sum = 0;
  for (const CodedBlock& block : blocks) {
    sum += class_encode_table(block.model).cost[block.class_symbol];
    if (block.table >= 0) {
      const EncodeTable& table = encode_table(block.table);
      for (int i = 0; i < block.n; ++i) sum += table.cost[symbols[i]];
    }
    symbols += kBlock;
  }
  return static_cast<double>(sum) / 4096;
}

}  // namespace

double class_bits(EncodePlan* plan) { return choose_class_models(plan); }

void prepare_classes(EncodePlan* plan) {
  assign_classes(plan);
  skip_zero_blocks(plan);
  choose_class_models(plan);
}

void encode_piece_gg(const EncodePlan& plan, int64_t begin, int64_t end, bool want_model_bits,
                     PieceOutput* out) {
  const size_t count = static_cast<size_t>(end - begin);
  out->model_bits = 0;
  out->extra.clear();
  out->symbols.resize(count * kBlock);
  out->words.resize(count * (kBlock + 1));  // at most one word a symbol
  BitWriter extra(&out->extra);
  std::vector<CodedBlock> blocks;
  blocks.reserve(count);
  forward_classes(plan, begin, end, &blocks, &extra);
  forward_symbols(plan, begin, end, &blocks, out, &extra);
  extra.finish();

  std::fill(out->states, out->states + kLanes, kRansLow);
  uint16_t* word = out->words.data() + out->words.size();
  for (size_t b = count; b-- > 0;) {
    if (blocks[b].table < 0) continue;
    word = kernels().encode(out->states, &out->symbols[b * kBlock], blocks[b].n,
                            encode_table(blocks[b].table), word);
  }
  for (size_t b = count; b-- > 0;) {
    rans_put(&out->states[b % kLanes],
             class_encode_table(blocks[b].model).entry[blocks[b].class_symbol], &word);
  }
  out->first_word = static_cast<size_t>(word - out->words.data());
  if (!want_model_bits) return;
  out->model_bits =
      ideal_bits(blocks, out->symbols.data()) + 8.0 * static_cast<double>(out->extra.size());
}

void encode_piece_eg(const EncodePlan& plan, int64_t begin, int64_t end, PieceOutput* out) {
  float scratch[kBlock];
  out->model_bits = 0;
  out->extra.clear();
  out->words.clear();
  out->first_word = 0;
  BitWriter bits(&out->extra);
  ClassPredictor predictor(plan);
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    const int c = plan.ws->classes[static_cast<size_t>(b)];
    predictor.next(r, c, [&](int symbol, int delta) {
      put_golomb(&bits, symbol == kZeroSymbol ? 0 : zigzag(delta) + 1, 1);
    });
    BlockCode code;
    Quantizer q;
    if (!plan_block(plan, {r, local, n, c}, &code, &q)) return;
    const float* x =
        load_floats(plan.input->runs[r], plan.input->dtype, local * kBlock, n, scratch);
    const int order = tables::kGolombOrders[code.table] + code.shift;
    for (int i = 0; i < n; ++i) {
      const int32_t k = quantize_magnitude(x[i], q, i);
      put_golomb(&bits, zigzag((float_bits(x[i]) >> 31) != 0 ? -k : k), order);
    }
  });
  bits.finish();
}

}  // namespace gct
