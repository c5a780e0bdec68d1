/* A network's first block, whose input is data: convolution, leaky ReLU and 2x2 max-pool as one.
 *
 * Compiled twice, for float and for double. Images are x [T, B, I, H, W] less `level` [T, I];
 * weights [T, K, O] and bias [T, O], K = k k I numbers under an output pixel, O in whole vectors of
 * 64 bytes; out and `which` [T, B, OH/pool, OW/pool, O]: the answer, and where in its window the
 * greatest lies. The pool is 1 or 2. Maps of full size are never made: they would be most of a
 * network's memory traffic. One thread, and no state.
 *
 * With P the patches under all output pixels and u the gradient of what was greatest:
 *   moments   mean and covariance of the rows of P, from which follow those of every channel
 *   forward   lrelu(max over the window of P w + b)
 *   backward  dw = P' u, db = sum(u), over the greatest alone
 *   its own   for cotangents Gw, Gb: of u, P Gw + Gb at the greatest; of w and b nothing
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MOST_TAPS 66 /* numbers under an output pixel that there is room for, and one, in threes */
#define WIDE 4       /* vectors of channels at a time */
#define NINE 9       /* taps whose sums stay in registers together */
#define THREE 3      /* rows and columns of the covariance, likewise */
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, real)

typedef struct { /* as the caller gives it */
    int64_t tasks, batch, height, width, out_height, out_width, in, out, size, stride, padding,
        pool;
} shape;

#define real float
#define whole int32_t
#include "first_frame.h"
#include "first_moments.h"
#include "first_body.h"
#undef real
#undef whole
#define real double
#define whole int64_t
#include "first_frame.h"
#include "first_moments.h"
#include "first_body.h"
