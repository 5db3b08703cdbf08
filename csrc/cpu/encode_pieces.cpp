#include <algorithm>
#include <cstring>

#include "cpu/block_symbols.h"
#include "cpu/piece_classes.h"
#include "cpu/pieces.h"
#include "cpu/scratch.h"
#include "cpu/trellis_blocks.h"

namespace gct {
namespace {

void forward_classes(const EncodePlan& plan, int64_t begin, int64_t end, PieceOutput* out,
                     BitWriter* extra) {
  out->blocks.clear();
  ClassPredictor predictor(plan);
  for_each_block(plan, begin, end, [&](size_t r, int64_t local, int n, int64_t b) {
    predictor.next(r, plan.ws->classes[static_cast<size_t>(b)], [&](int symbol, int delta) {
      // Filled in place: a copy reads by halves what was just written by parts, and waits for it.
      CodedBlock& block = out->blocks.emplace_back();
      block.run = r;
      block.local = local;
      block.n = n;
      block.class_symbol = static_cast<uint8_t>(symbol);
      block.model = plan.runs[r].header.model;
      if (symbol == kClassEscape) put_golomb(extra, zigzag(delta), 3);
    });
  });
}

const float* block_floats(const EncodePlan& plan, const CodedBlock& block, float* scratch) {
  const Run& run = plan.input->runs[block.run];
  return load_floats(run, plan.input->dtype, block.local * kBlock, block.n, scratch);
}

// Sets the blocks' coders; false if one of them has several tables.
// Coders follow from run and class, so they are worked out once for each.
bool find_coders(const EncodePlan& plan, int64_t begin, PieceOutput* out) {
  if (plan.params->rounding == Rounding::kStochastic) return false;
  if (plan.params->effort == Effort::kHigh) return false;
  out->coders.assign(kMaxClass - kMinClass + 1, ClassCoder());
  BlockSetup setup;
  for (size_t b = 0; b < out->blocks.size(); ++b) {
    CodedBlock& block = out->blocks[b];
    const int c = plan.ws->classes[static_cast<size_t>(begin) + b];
    if (c == kZeroClass) continue;
    ClassCoder& coder = out->coders[static_cast<size_t>(c - kMinClass)];
    if (coder.run != static_cast<int64_t>(block.run)) {
      const RunHeader& run = plan.runs[block.run].header;
      if (run.columns > 0) return false;
      const BlockPlace place = {block.run, block.local, block.n, c};
      if (!setup.prepare(plan, place, run.code, plan.log2_step)) return false;
      coder.run = static_cast<int64_t>(block.run);
      coder.inverse_step = setup.quantizer.inverse_step;
      coder.bias = setup.quantizer.bias;
      coder.shift = setup.code.shift;
      coder.table = setup.code.table;
    }
    block.inverse_step = coder.inverse_step;
    block.bias = coder.bias;
    block.shift = coder.shift;
    block.table = coder.table;
  }
  return true;
}

Quantizer quantizer_of(const CodedBlock& block) {
  Quantizer q;
  q.inverse_step = block.inverse_step;
  q.bias = block.bias;
  q.magnitudes = table_magnitudes(block.table);
  return q;
}

// Values to words in one pass; then, for their bits stand in the order of the elements, the
// escapes and low bits.
uint16_t* encode_by_values(const EncodePlan& plan, PieceOutput* out, BitWriter* extra,
                           uint16_t* word) {
  constexpr size_t kRows = kBlock / kLanes;
  float scratch[kBlock];
  out->escapes.resize(std::max(out->escapes.size(), out->blocks.size() * kRows));
  for (size_t b = out->blocks.size(); b-- > 0;) {
    const CodedBlock& block = out->blocks[b];
    if (block.table < 0) continue;
    with_high_parts(block_floats(plan, block, scratch), block.n, quantizer_of(block), block.shift,
                    [&](const float* x, const Quantizer& q) {
                      word = kernels().encode_values(out->states, x, block.n, q,
                                                     magnitude_table(block.table), word,
                                                     &out->escapes[b * kRows]);
                    });
  }
  for (size_t b = 0; b < out->blocks.size(); ++b) {
    const CodedBlock& block = out->blocks[b];
    const uint32_t* escapes = &out->escapes[b * kRows];
    const size_t rows = static_cast<size_t>(div_up(block.n, kLanes));
    const bool escaped = std::any_of(escapes, escapes + rows, [](uint32_t e) { return e != 0; });
    if (block.table < 0 || (!escaped && block.shift == 0)) continue;
    const BlockView view(block_floats(plan, block, scratch), block.n, quantizer_of(block),
                         block.shift);
    put_extra(view, escapes, [&](int) { return block.table; }, extra);
  }
  return word;
}

// Keeps the tables of block b's symbols.
void note_tables(const BlockSetup& setup, size_t b, PieceOutput* out) {
  CodedBlock& block = out->blocks[b];
  block.choice = setup.choice != nullptr;
  block.table = setup.first_table();
  if (!block.choice) return;
  out->tables.resize(out->symbols.size());
  std::copy(setup.choice, setup.choice + block.n, &out->tables[b * kBlock]);
}

bool prepare_at(const EncodePlan& plan, int64_t begin, size_t b, const PieceOutput& out,
                BlockSetup* setup) {
  const CodedBlock& block = out.blocks[b];
  const int c = plan.ws->classes[static_cast<size_t>(begin) + b];
  const RunCode& run = plan.runs[block.run].header.code;
  return setup->prepare(plan, {block.run, block.local, block.n, c}, run, plan.log2_step);
}

void forward_symbols(const EncodePlan& plan, int64_t begin, PieceOutput* out, BitWriter* extra) {
  float scratch[kBlock];
  BlockSetup setup;
  out->symbols.resize(out->blocks.size() * kBlock);
  for (size_t b = 0; b < out->blocks.size(); ++b) {
    if (!prepare_at(plan, begin, b, *out, &setup)) continue;
    note_tables(setup, b, out);
    const CodedBlock& block = out->blocks[b];
    make_symbols(block_floats(plan, block, scratch), block.n, setup, &out->symbols[b * kBlock],
                 extra);
  }
}

// The same by the trellis: symbols are known when all blocks are. Blocks with low bits aside, whose
// error is next to nothing, stay as they are.
void forward_trellis(const EncodePlan& plan, int64_t begin, TrellisScratch* trellis,
                     PieceOutput* out, BitWriter* extra) {
  float scratch[kBlock];
  BlockSetup setup;
  out->symbols.resize(out->blocks.size() * kBlock);
  out->tables.resize(out->symbols.size());
  trellis->path.begin(/*free_start=*/false);
  for (size_t b = 0; b < out->blocks.size(); ++b) {
    if (!prepare_at(plan, begin, b, *out, &setup)) continue;
    note_tables(setup, b, out);
    CodedBlock& block = out->blocks[b];
    block.trellis = setup.code.shift == 0;
    if (!block.trellis) continue;
    block.choice = true;
    block.table = setup.code.table / tables::kTablesPerShape * tables::kTablesPerShape;
    add_block(setup, block_floats(plan, block, scratch), block.n, b, trellis);
  }
  trellis->path.finish(out->symbols.data(), out->tables.data());
  for (size_t b = 0; b < out->blocks.size(); ++b) {
    const CodedBlock& block = out->blocks[b];
    uint8_t* symbols = &out->symbols[b * kBlock];
    if (block.table < 0) continue;
    if (block.trellis && !memchr(symbols, kEscapeSymbol, static_cast<size_t>(block.n))) continue;
    prepare_at(plan, begin, b, *out, &setup);
    const float* x = block_floats(plan, block, scratch);
    if (block.trellis) {
      put_trellis_escapes(x, block.n, setup, symbols, &out->tables[b * kBlock], extra);
    } else {
      make_symbols(x, block.n, setup, symbols, extra);
    }
  }
}

// The tables that a block's symbols and choices refer to.
const EncodeTable* tables_of(const CodedBlock& block) {
  return block.trellis ? trellis_encode_tables(block.table / tables::kTablesPerShape)
                       : &encode_table(block.table);
}

uint16_t* encode_by_symbols(const EncodePlan& plan, int64_t begin, TrellisScratch* trellis,
                            PieceOutput* out, BitWriter* extra, uint16_t* word) {
  if (plan.params->effort == Effort::kHigh) {
    forward_trellis(plan, begin, trellis, out, extra);
  } else {
    forward_symbols(plan, begin, out, extra);
  }
  for (size_t b = out->blocks.size(); b-- > 0;) {
    const CodedBlock& block = out->blocks[b];
    if (block.table < 0) continue;
    const uint8_t* choice = block.choice ? &out->tables[b * kBlock] : nullptr;
    word = kernels().encode(out->states, &out->symbols[b * kBlock], block.n, tables_of(block),
                            choice, word);
  }
  return word;
}

// After encode_by_symbols().
double ideal_bits(const PieceOutput& out) {
  int64_t sum = 0;
  for (size_t b = 0; b < out.blocks.size(); ++b) {
    const CodedBlock& block = out.blocks[b];
    sum += class_encode_table(block.model).cost[block.class_symbol];
    for (int i = 0; i < block.n && block.table >= 0; ++i) {
      const size_t at = b * kBlock + static_cast<size_t>(i);
      sum += tables_of(block)[block.choice ? out.tables[at] : 0].cost[out.symbols[at]];
    }
  }
  return static_cast<double>(sum) / 4096;
}

}  // namespace

void encode_piece_gg(const EncodePlan& plan, int64_t begin, int64_t end, bool want_model_bits,
                     TrellisScratch* trellis, PieceOutput* out) {
  const size_t count = static_cast<size_t>(end - begin);
  out->model_bits = 0;
  out->extra.clear();
  // At most one word a symbol; kernels may write below the first.
  out->words.resize(std::max(out->words.size(), count * (kBlock + 1) + kLanes));
  BitWriter extra(&out->extra);
  forward_classes(plan, begin, end, out, &extra);
  std::fill(out->states, out->states + kLanes, kRansLow);
  uint16_t* word = out->words.data() + out->words.size();
  word = !want_model_bits && find_coders(plan, begin, out)
             ? encode_by_values(plan, out, &extra, word)
             : encode_by_symbols(plan, begin, trellis, out, &extra, word);
  extra.finish();
  for (size_t b = count; b-- > 0;) {
    const CodedBlock& block = out->blocks[b];
    rans_put(&out->states[b % kLanes], class_encode_table(block.model).entry[block.class_symbol],
             &word);
  }
  out->first_word = static_cast<size_t>(word - out->words.data());
  if (want_model_bits)
    out->model_bits = ideal_bits(*out) + 8.0 * static_cast<double>(out->extra.size());
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
