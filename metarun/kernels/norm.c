/* Batch normalisation, leaky ReLU and 2x2 max-pool in one pass each way, to the second derivative.
 *
 * Compiled twice, for float and for double. Arrays are [T, N, H, W, C]; every task and
 * channel has statistics of its own, over N, H and W. The pool is 1 or 2; pooled arrays are
 * [T, N, H/2, W/2, C]; `peak` and `which` are the greatest z - mean of each window and its place.
 * One thread, and no state.
 *
 * With x = (z - mean) r, y = gain x + bias and u the gradient of y:
 *   backward   dz = gain r P(u),  P(v) = v - mean(v) - x mean(v x);  dgain = sum(u x), dbias = sum(u)
 *   its own    for cotangents Z, G, B of (dz, dgain, dbias):
 *              of u     gain r P(Z) + G x + B
 *              of gain  r sum(Z P(u))
 *              of z     r P(w) - gain r^2 s x / n,  s = sum(Z P(u)),
 *                       w = G u - gain r (Z mean(u x) + u mean(Z x))
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 32 /* channels at a time: their rows stay in the second-level cache between passes */
#define INLINE static inline __attribute__((always_inline))
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, real)

typedef struct {
    int64_t tasks, n, h, w, c;
} shape;

#define real float
#include "norm_body.h"
#undef real
#define real double
#include "norm_body.h"
