// The algorithms, written once against the SIMD layer (simd/README.md). Each isa/*.cpp includes one
// simd header and then this file; everything here has internal linkage except the kernel table.
//
// A chunk of rows is worked off in tiles of R rows:
//
//   load_tile       addresses, targets and options of R rows, into arrays
//   *_stats         one pass over the logits: row maximum, sum of exponentials    (rows, columns)
//   tile_epilogue   loss, gradient weight, statistics: vectorised over the R rows (epilogue)
//   *_grad          second pass, the logits now in cache: the gradient            (rows, columns)
//
// There are two pairs of passes. In `rows` the lanes run along the classes of one row; in `columns`
// they run along neighbouring rows, for the class axis in the middle and for few classes. Both add
// the exponentials of a row in one and the same order (accumulator.inc.h), so that a row's bits depend
// neither on the layout nor on the split of the batch.
//
// All exponentials are powers of two, 2^(z log2(e) - K), with K an integer: the row's maximum in
// units of ln 2, rounded up. Where blocks of a row have different K their sums are scaled exactly.

#include "kernels/polynomials.inc.h"
#include "kernels/math.inc.h"
#include "kernels/accumulator.inc.h"
#include "kernels/tile.inc.h"
#include "kernels/rows.inc.h"
#include "kernels/columns.inc.h"
#include "kernels/epilogue.inc.h"
#include "kernels/epilogue_common.inc.h"
#include "kernels/targets.inc.h"
#include "kernels/pointwise.inc.h"
#include "kernels/chunk.inc.h"
