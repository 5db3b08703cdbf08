// What a segment decodes to, from its encoder's plan and input: several times quicker than
// decoding.
#pragma once

#include "cpu/analyze.h"

namespace gct {

// Writes the decoded values of the segment that was just written from `plan` to `out`, which may be
// the input itself where its runs lie one after the other; bit for bit those of decode() with this
// factor, but for +0 in the place of -0. False, with nothing written, where that isn't simple:
// another kind or dtype than gg of float32, symbols chosen together or by random numbers, a run
// with a column profile or NaN in it, a block with low bits aside. Low-rank parts are the caller's
// question.
bool restore_values(const EncodePlan& plan, float factor, float* out);

}  // namespace gct
