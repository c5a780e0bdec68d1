/* Convolution and its two gradients where every task has weights of its own.
 *
 * Compiled twice, for float and for double. Images are [T, B, H, W, I] and [T, B, OH, OW, O];
 * weights [T, O, k, k, I] with `apart` numbers from task to task, 0 when all share one set. I and O
 * are multiples of a 64-byte vector; the caller sees to that. One thread, and no state. Register
 * tiles of 6 pixels x 4 vectors keep both multipliers busy; libraries are as fast on many images,
 * and several times slower on the few of one support set.
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

typedef struct { /* as the caller gives it */
    int64_t tasks, batch, height, width, out_height, out_width, in, out, size, stride, padding;
} given;

typedef struct { /* where an output pixel's patch begins: its image, row and column */
    int32_t b, h, w;
} place;

typedef struct {
    int64_t tasks, batch, height, width, out_height, out_width, in, out, size;
    int64_t down[MOST_TAPS], across[MOST_TAPS]; /* of each tap */
    place *places;                              /* of one task's output pixels; to be freed */
} shape;

/* Work out once what every tile would divide for. */
static shape prepare(const given *g)
{
    shape s = {g->tasks, g->batch, g->height, g->width, g->out_height,
               g->out_width, g->in, g->out, g->size, {0}, {0}, NULL};
    for (int64_t tap = 0; tap < g->size * g->size; tap++)
        s.down[tap] = tap / g->size, s.across[tap] = tap % g->size;
    place *p = s.places = malloc(sizeof(place) * (g->batch * g->out_height * g->out_width));
    for (int64_t b = 0; p && b < g->batch; b++)
        for (int64_t h = 0; h < g->out_height; h++)
            for (int64_t w = 0; w < g->out_width; w++)
                *p++ = (place){(int32_t)b, (int32_t)(h * g->stride - g->padding),
                               (int32_t)(w * g->stride - g->padding)};
    return s;
}

#define real float
#include "conv_body.h"
#undef real
#define real double
#include "conv_body.h"
