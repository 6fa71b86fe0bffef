// The kernels of each dtype, and the table of this ISA. Included last by ../kernels.inc.h.

namespace gce {
namespace {

void lay_out_shard(RowProblem* p) {
  switch (p->arrays[kLogits].dtype) {
    case GCE_FLOAT16:
      return lay_out_shard_as<Float16>(p);
    case GCE_BFLOAT16:
      return lay_out_shard_as<BFloat16>(p);
    case GCE_FLOAT32:
      return lay_out_shard_as<float>(p);
    default:
      return lay_out_shard_as<double>(p);
  }
}

void lay_out(RowProblem* p, int64_t cache_bytes) {
  if (needs_wide_rows(*p)) return lay_out_wide(p);
  if (p->shard != GCE_SHARD_NONE) return lay_out_shard(p);
  switch (p->arrays[kLogits].dtype) {
    case GCE_FLOAT16:
      return lay_out_as<Float16>(p, cache_bytes);
    case GCE_BFLOAT16:
      return lay_out_as<BFloat16>(p, cache_bytes);
    case GCE_FLOAT32:
      return lay_out_as<float>(p, cache_bytes);
    default:
      return lay_out_as<double>(p, cache_bytes);
  }
}

template <template <class> class WorkerOf>
void work_on(const RowProblem& p, char* scratch, NextChunk next, void* chunks, PairSum* loss_sums) {
  switch (p.arrays[kLogits].dtype) {
    case GCE_FLOAT16:
      return WorkerOf<Float16>(p, scratch).run(next, chunks, loss_sums);
    case GCE_BFLOAT16:
      return WorkerOf<BFloat16>(p, scratch).run(next, chunks, loss_sums);
    case GCE_FLOAT32:
      return WorkerOf<float>(p, scratch).run(next, chunks, loss_sums);
    default:
      return WorkerOf<double>(p, scratch).run(next, chunks, loss_sums);
  }
}

void work(const RowProblem& p, char* scratch, NextChunk next, void* chunks, PairSum* loss_sums) {
  if (p.layout == kRowsWide) return work_wide(p, scratch, next, chunks, loss_sums);
  if (p.layout == kRowsOfShard) return work_on<ShardWorker>(p, scratch, next, chunks, loss_sums);
  work_on<Worker>(p, scratch, next, chunks, loss_sums);
}

void work_on_segments(const RowProblem& p, char* scratch, int64_t worker, const LongRows& rows,
                      PairSum* loss_sums) {
  switch (p.arrays[kLogits].dtype) {
    case GCE_FLOAT16:
      return SegmentWorker<Float16>(p, scratch, worker, rows, loss_sums).run();
    case GCE_BFLOAT16:
      return SegmentWorker<BFloat16>(p, scratch, worker, rows, loss_sums).run();
    case GCE_FLOAT32:
      return SegmentWorker<float>(p, scratch, worker, rows, loss_sums).run();
    default:
      return SegmentWorker<double>(p, scratch, worker, rows, loss_sums).run();
  }
}

}  // namespace

#define GCE_JOIN_(a, b) a##b
#define GCE_JOIN(a, b) GCE_JOIN_(a, b)
#define GCE_TEXT_(a) #a
#define GCE_TEXT(a) GCE_TEXT_(a)

const KernelTable* GCE_JOIN(GCE_ISA, _kernels)() {
  static const KernelTable table = {GCE_TEXT(GCE_ISA),
                                    lay_out,
                                    work,
                                    work_on_segments,
                                    work_on_elements,
                                    check_targets,
                                    check_probabilities,
                                    first_outside_unit,
                                    pointwise,
                                    limit};
  return &table;
}

}  // namespace gce
