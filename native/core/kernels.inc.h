// The algorithms, written once against the SIMD layer (simd/README.md). Each isa/*.cpp includes one
// simd header and then this file; everything here has internal linkage except the kernel table.
//
// A worker takes chunks of rows and works them off in tiles of R rows:
//
//   load_run        addresses, targets and options of R rows, into arrays           (tile)
//   first pass      sum of exponentials, which are kept in scratch                  (rows, columns)
//   tile_epilogue   loss, gradient weight, statistics: vectorised over the R rows   (epilogue*)
//   second pass     the gradient, from what was kept                                (rows, columns)
//
// There are three pairs of passes. In `rows` the lanes run along the classes of one row, and the second pass over
// a tile runs in the loops of the first pass over the next. In `columns` the lanes run along neighbouring rows, for
// the class axis in the middle and for few classes, which are transposed into scratch (staging). In `dense_rows`, for rows of
// few classes one after another, they run along the scalars of a tile. A few long rows are shared by the workers, in
// segments (long_rows). `shard_rows` works on a slice of the classes. All of these add the exponentials of a row in one and
// the same order (accumulator.inc.h), so that a row's bits depend neither on the layout nor on the split of the batch.
// What they lack, `wide_rows` does in double, from scratch, in one way for all layouts.
//
// The binary form is elementwise and has one pass of its own (binary), around the epilogue's functions.
//
// All exponentials are powers of two, 2^(z log2(e) - K), with K an integer, the row's reference. A different K
// changes no digit of theirs. So K need not be the maximum, which would take a pass of its own: it comes from the row's
// first classes, and the rare row that holds much larger logits is summed again.

#include <cassert>
#include <new>

#include "kernels/polynomials.inc.h"
#include "kernels/math.inc.h"
#include "kernels/accumulator.inc.h"
#include "kernels/tile.inc.h"
#include "kernels/row_finish.inc.h"
#include "kernels/rows.inc.h"
#include "kernels/staging.inc.h"
#include "kernels/column_sums.inc.h"
#include "kernels/columns.inc.h"
#include "kernels/epilogue.inc.h"
#include "kernels/epilogue_common.inc.h"
#include "kernels/dense_rows.inc.h"
#include "kernels/targets.inc.h"
#include "kernels/pointwise.inc.h"
#include "kernels/limits.inc.h"
#include "kernels/chunk.inc.h"
#include "kernels/long_rows.inc.h"
#include "kernels/shard_rows.inc.h"
#include "kernels/wide_memory.inc.h"
#include "kernels/wide_terms.inc.h"
#include "kernels/wide_rows.inc.h"
#include "kernels/binary_common.inc.h"
#include "kernels/binary.inc.h"
#include "kernels/table.inc.h"
