#include "cpu/kernels.h"
#include "cuda/executor.h"
#include "cuda/host_tables.h"
#include "cuda/host_warp.h"
#include "cuda/pipeline.h"

namespace gct::gpu {

HostTables::HostTables() {
  const auto add = [](const auto* table, auto* all) {
    all->insert(all->end(), table, table + tables::kTablesPerShape);
  };
  for (int set = 0; set < kLevelSets; ++set) {
    for (int shape = 0; shape < tables::kNumShapes; ++shape) add(level_tables(shape, set), &levels);
  }
  for (int shape = 0; shape < tables::kNumShapes; ++shape) {
    add(encode_tables(shape), &encode);
    add(decode_tables(shape), &decode);
    for (int bits = 1; bits <= 8; ++bits) {
      const uint32_t* source = gct::fixed_levels(shape, bits);
      const int count = 1 << (bits - 1);
      const size_t first = fixed_levels.size();
      for (int i = 0; i < count; ++i)
        fixed_levels.push_back(static_cast<float>(source[i]) * (1.0f / 65536.0f));
      for (size_t i = first; i < fixed_levels.size(); ++i)
        fixed_thresholds.push_back(
            i + 1 < fixed_levels.size() ? 0.5f * (fixed_levels[i] + fixed_levels[i + 1]) : 0);
    }
  }
  for (int model = 0; model < tables::kNumClassModels; ++model) {
    class_encode.push_back(class_encode_table(model));
    class_decode.push_back(class_decode_table(model));
  }
}

namespace {

class HostExecutor : public Executor {
 public:
  HostExecutor()
      : tables_{host_.encode.data(),          host_.decode.data(),       host_.levels.data(),
                host_.class_encode.data(),    host_.class_decode.data(), host_.fixed_levels.data(),
                host_.fixed_thresholds.data()} {}

  void encode(const EncodeBatch& batch, void*) override {
    HostLauncher launcher;
    run_encode(launcher, batch);
  }
  void decode(const DecodeBatch& batch, void*) override {
    HostLauncher launcher;
    run_decode(launcher, batch);
  }
  const CodingTables& tables() const override { return tables_; }

 private:
  HostTables host_;
  CodingTables tables_;
};

}  // namespace

Executor& host_executor() {
  static HostExecutor executor;
  return executor;
}

}  // namespace gct::gpu
