#include <algorithm>
#include <cstring>

#include "cpu/block_symbols.h"
#include "cpu/pieces.h"
#include "cpu/rate.h"
#include "cpu/trellis_blocks.h"

namespace gct {
namespace {

// Class symbols: 0 zero block, 1 escape, 2.. the difference to the last coded block's class.
constexpr int kZeroBlock = 0;
constexpr int kClassEscape = 1;
constexpr int kFirstDelta = 2;
constexpr int kClassSymbols = 2 * tables::kClassDeltaMax + 3;

int class_symbol(int scale_class, int predicted) {
  const int delta = scale_class - predicted;
  if (delta < -tables::kClassDeltaMax || delta > tables::kClassDeltaMax) return kClassEscape;
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
      f(kZeroBlock, 0);
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

// Blocks this far under their step usually quantize to zeros; finding out costs more than it saves
// above.
constexpr int kSkipBelow = -8;  // table t, in quarter octaves

void skip_zero_blocks(EncodePlan* plan) {
  float scratch[kBlock];
  uint8_t symbols[kBlock];
  BlockSetup setup;
  int16_t* classes = plan->ws->classes.data();
  for_each_block(*plan, 0, plan->coded_blocks, [&](size_t r, int64_t local, int n, int64_t b) {
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
  int table;    // its own, or the first of its shape's if choice is set; -1: zero block, no symbols
  bool choice;  // its elements' tables stand in PieceOutput::tables
  bool trellis;
  uint8_t class_symbol;
  uint8_t model;
};

void forward_classes(const EncodePlan& plan, int64_t begin, int64_t end,
                     std::vector<CodedBlock>* blocks, BitWriter* extra) {
  ClassPredictor predictor(plan);
  for_each_block(plan, begin, end, [&](size_t r, int64_t, int n, int64_t b) {
    predictor.next(r, plan.ws->classes[static_cast<size_t>(b)], [&](int symbol, int delta) {
      blocks->push_back(
          {n, -1, false, false, static_cast<uint8_t>(symbol), plan.runs[r].header.model});
      if (symbol == kClassEscape) put_golomb(extra, zigzag(delta), 3);
    });
  });
}

// Keeps the tables of a block's symbols, the first of which stands at `at`.
void note_tables(const BlockSetup& setup, int n, size_t at, CodedBlock* block, PieceOutput* out) {
  block->choice = setup.choice != nullptr;
  block->table = block->choice ? setup.table(0) - setup.choice[0] : setup.code.table;
  if (!block->choice) return;
  out->tables.resize(out->symbols.size());
  std::copy(setup.choice, setup.choice + n, &out->tables[at]);
}

void forward_symbols(const EncodePlan& plan, int64_t begin, int64_t end,
                     std::vector<CodedBlock>* blocks, PieceOutput* out, BitWriter* extra) {
  float scratch[kBlock];
  BlockSetup setup;
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    const int c = plan.ws->classes[static_cast<size_t>(b)];
    if (!setup.prepare(plan, {r, local, n, c}, plan.runs[r].header.code, plan.log2_step)) return;
    const size_t at = static_cast<size_t>(b - begin) * kBlock;
    note_tables(setup, n, at, &(*blocks)[static_cast<size_t>(b - begin)], out);
    const float* x =
        load_floats(plan.input->runs[r], plan.input->dtype, local * kBlock, n, scratch);
    make_symbols(x, n, setup, &out->symbols[at], extra);
  });
}

// The same by the trellis: symbols are known when all blocks are. Blocks with low bits aside, whose
// error is next to nothing, stay as they are.
void forward_trellis(const EncodePlan& plan, int64_t begin, int64_t end,
                     std::vector<CodedBlock>* blocks, PieceOutput* out, BitWriter* extra) {
  float scratch[kBlock];
  BlockSetup setup;
  out->tables.resize(out->symbols.size());
  out->path.begin(/*free_start=*/false);
  const auto prepare = [&](size_t r, int64_t local, int n, int64_t b) {
    const int c = plan.ws->classes[static_cast<size_t>(b)];
    return setup.prepare(plan, {r, local, n, c}, plan.runs[r].header.code, plan.log2_step);
  };
  const auto values = [&](size_t r, int64_t local, int n) {
    return load_floats(plan.input->runs[r], plan.input->dtype, local * kBlock, n, scratch);
  };
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    if (!prepare(r, local, n, b)) return;
    const size_t place = static_cast<size_t>(b - begin);
    CodedBlock& block = (*blocks)[place];
    note_tables(setup, n, place * kBlock, &block, out);
    block.trellis = setup.code.shift == 0;
    if (!block.trellis) return;
    block.choice = true;
    block.table = setup.code.table / tables::kTablesPerShape * tables::kTablesPerShape;
    add_block(setup, values(r, local, n), n, place, &out->prices, &out->path);
  });
  out->path.finish(out->symbols.data(), out->tables.data());
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    const size_t at = static_cast<size_t>(b - begin) * kBlock;
    const CodedBlock& block = (*blocks)[static_cast<size_t>(b - begin)];
    uint8_t* symbols = &out->symbols[at];
    if (block.table < 0) return;
    if (block.trellis && !memchr(symbols, kEscapeSymbol, static_cast<size_t>(n))) return;
    prepare(r, local, n, b);
    const float* x = values(r, local, n);
    if (block.trellis) {
      put_trellis_escapes(x, n, setup, symbols, &out->tables[at], extra);
    } else {
      make_symbols(x, n, setup, symbols, extra);
    }
  });
}

// The tables that a block's symbols and choices refer to.
const EncodeTable* tables_of(const CodedBlock& block) {
  return block.trellis ? trellis_encode_tables(block.table / tables::kTablesPerShape)
                       : &encode_table(block.table);
}

double ideal_bits(const std::vector<CodedBlock>& blocks, const PieceOutput& out) {
  int64_t sum = 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const CodedBlock& block = blocks[b];
    sum += class_encode_table(block.model).cost[block.class_symbol];
    for (int i = 0; i < block.n && block.table >= 0; ++i) {
      const size_t at = b * kBlock + static_cast<size_t>(i);
      sum += tables_of(block)[block.choice ? out.tables[at] : 0].cost[out.symbols[at]];
    }
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
  const bool trellis = plan.params->effort == Effort::kHigh;
  (trellis ? forward_trellis : forward_symbols)(plan, begin, end, &blocks, out, &extra);
  extra.finish();

  std::fill(out->states, out->states + kLanes, kRansLow);
  uint16_t* word = out->words.data() + out->words.size();
  for (size_t b = count; b-- > 0;) {
    if (blocks[b].table < 0) continue;
    const uint8_t* choice = blocks[b].choice ? &out->tables[b * kBlock] : nullptr;
    word = kernels().encode(out->states, &out->symbols[b * kBlock], blocks[b].n,
                            tables_of(blocks[b]), choice, word);
  }
  for (size_t b = count; b-- > 0;) {
    rans_put(&out->states[b % kLanes],
             class_encode_table(blocks[b].model).entry[blocks[b].class_symbol], &word);
  }
  out->first_word = static_cast<size_t>(word - out->words.data());
  if (!want_model_bits) return;
  out->model_bits = ideal_bits(blocks, *out) + 8.0 * static_cast<double>(out->extra.size());
}

void encode_piece_eg(const EncodePlan& plan, int64_t begin, int64_t end, PieceOutput* out) {
  float scratch[kBlock];
  out->model_bits = 0;
  out->extra.clear();
  out->words.clear();
  out->first_word = 0;
  BitWriter bits(&out->extra);
  ClassPredictor predictor(plan);
  BlockSetup setup;
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    const int c = plan.ws->classes[static_cast<size_t>(b)];
    predictor.next(r, c, [&](int symbol, int delta) {
      put_golomb(&bits, symbol == kZeroBlock ? 0 : zigzag(delta) + 1, 1);
    });
    if (!setup.prepare(plan, {r, local, n, c}, plan.runs[r].header.code, plan.log2_step)) return;
    const float* x =
        load_floats(plan.input->runs[r], plan.input->dtype, local * kBlock, n, scratch);
    for (int i = 0; i < n; ++i) {
      const int32_t k = quantize_magnitude(x[i], setup.quantizer, i);
      const int order = tables::kGolombOrders[setup.table(i)] + setup.code.shift;
      put_golomb(&bits, zigzag((float_bits(x[i]) >> 31) != 0 ? -k : k), order);
    }
  });
  bits.finish();
}

}  // namespace gct
