/* Convolution and its two gradients where every task has weights of its own.
 *
 * Compiled twice, for float and for double. Images are [T, B, H, W, I] and [T, B, OH, OW, O]; weights
 * [T, O, k, k, I] with `apart` numbers from task to task, 0 when all share one set. I and O are multiples of a 64-byte vector; the caller sees to that. One
 * thread, and no state. Register tiles of 6 pixels x 4 vectors keep both multipliers busy;
 * libraries are as fast on many images, and several times slower on the few of one support set.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TILE 6        /* pixels whose sums stay in registers together */
#define WIDE 4        /* vectors of channels, likewise */
#define PIXELS 128    /* of a block whose pointers and rows stay in the first-level cache */
#define MOST_TAPS 49
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, real)

typedef struct {
    int64_t tasks, batch, height, width, out_height, out_width, in, out, size, stride, padding;
} shape;

#define real float
#include "conv_body.h"
#undef real
#define real double
#include "conv_body.h"
