// The order of launches; none waits for the device. Launcher: HostLauncher or DeviceLauncher.
#pragma once

#include "cuda/decode.h"
#include "cuda/write.h"

namespace gct::gpu {

template <typename Launcher>
void choose_step(Launcher& launcher, const EncodeBatch& e) {
  launcher.template run<CountClassSymbols>(e, e.num_pieces);
  launcher.template run<ChooseModel>(e, e.num_runs);
  launcher.template run<CountGroups>(e, e.num_tiles);
  launcher.template run<AimSegment>(e, e.num_segments);
  launcher.template run<SampleBlock>(e, SampleBlock::tasks(e));
  launcher.template run<ChooseStep>(e, e.num_segments);
}

template <typename Launcher>
void run_encode(Launcher& launcher, const EncodeBatch& e) {
  launcher.zero(e.out, static_cast<size_t>(e.out_bytes));
  launcher.zero(e.counters, static_cast<size_t>(e.counters_bytes));
  launcher.template run<MeasureTile>(e, e.num_tiles);
  launcher.template run<SettleRun>(e, e.num_runs);
  launcher.template run<PlaceRuns>(e, e.num_segments);
  if (e.params.kind == Kind::kGG) {
    choose_step(launcher, e);
    const int attempts = e.params.target == Target::kBits ? kAttempts : 1;
    for (int attempt = 0; attempt < attempts; ++attempt) {
      launcher.template run<QuantizeBlock>(e, e.num_blocks);
      launcher.template run<CountClassSymbols>(e, e.num_pieces);
      launcher.template run<ChooseModel>(e, e.num_runs);
      launcher.template run<EncodePiece>(e, e.num_pieces);
      launcher.template run<JudgeSize>(e, e.num_segments);
    }
    launcher.template run<WritePiece>(e, e.num_pieces);
  }
  launcher.template run<WriteHeaders>(e, e.num_segments);
  launcher.template run<WriteTile>(e, e.num_tiles);
}

template <typename Launcher>
void run_decode(Launcher& launcher, const DecodeBatch& d) {
  launcher.template run<ParseSegment>(d, d.num_segments);
  launcher.template run<DecodeTile>(d, d.num_tiles);
  launcher.template run<DecodePieces>(d, d.num_tasks);
  launcher.template run<PoisonTile>(d, d.num_tiles);
}

}  // namespace gct::gpu
