/* Forward and both ways back, for one type `real`; see first.c for the formulas. */

/* a where the mask is set, b elsewhere. */
INLINE VEC NAME(pick)(MASK mask, VEC a, VEC b)
{
    return (VEC)(((MASK)a & mask) | ((MASK)b & ~mask));
}

/* Leaky ReLU's derivative at `out` times v. */
INLINE VEC NAME(slant)(VEC out, VEC v, real slope)
{
    return NAME(pick)((MASK)(out > 0), v, v * slope);
}

/* y [pool * pool][wide]: what every pixel of one window answers. */
INLINE void NAME(window)(const int pool, const int wide, const shape *s, int64_t taps,
                         const int64_t *under, const real *const *at, const real *weights,
                         const real *bias, VEC y[4][WIDE])
{
    for (int k = 0; k < pool * pool; k++)
        for (int v = 0; v < wide; v++)
            y[k][v] = AT(bias, v);
    for (int64_t tap = 0; tap < taps; tap++)
        for (int v = 0; v < wide; v++) {
            const VEC w = AT(weights + tap * s->out, v);
            for (int k = 0; k < pool * pool; k++)
                y[k][v] += w * at[k][under[tap]];
        }
}

/* For each window: its cell of the output, and where the patches under its pixels begin. */
#define EACH_WINDOW                                                                       \
    for (int64_t b = 0; b < s->batch; b++) {                                              \
        NAME(frame)(s, x + (t * s->batch + b) * image, level + t * s->in, framed);        \
        for (int64_t i = 0; i < cells_h; i++)                                             \
            for (int64_t j = 0; j < cells_w; j++) {                                       \
                const int64_t cell = ((t * s->batch + b) * cells_h + i) * cells_w + j;    \
                const real *at[4];                                                        \
                for (int k = 0; k < pool * pool; k++)                                     \
                    at[k] = PATCH(pool * i + k / pool, pool * j + k % pool);
#define END }}

/* The greatest answer of a window, its place, and leaky ReLU of it. */
INLINE void NAME(forward_channels)(const int pool, const int wide, const shape *s, int64_t o,
                                   int64_t cell, int64_t taps, const int64_t *under,
                                   const real *const *at, const real *weights, const real *bias,
                                   real slope, real *out, uint8_t *which)
{
    VEC y[4][WIDE];
    NAME(window)(pool, wide, s, taps, under, at, weights + o, bias + o, y);
    for (int v = 0; v < wide; v++) {
        VEC best = y[0][v];
        MASK place = {0};
        for (int k = 1; k < pool * pool; k++) {
            const MASK more = (MASK)(y[k][v] > best) | (MASK)(y[k][v] != y[k][v]);
            best = NAME(pick)(more, y[k][v], best);
            place = (place & ~more) | (more & k);
        }
        AT(out + cell * s->out + o, v) = NAME(slant)(best, best, slope);
        ((BYTES *)(which + cell * s->out + o))[v] = __builtin_convertvector(place, BYTES);
    }
}

/* Cotangents of the gradients of weights and bias -> that of dout. */
INLINE void NAME(pull_channels)(const int pool, const int wide, const shape *s, int64_t o,
                                int64_t cell, int64_t taps, const int64_t *under,
                                const real *const *at, const real *weights, const real *bias,
                                real slope, const real *out, const uint8_t *which, real *ddout)
{
    VEC y[4][WIDE];
    const int64_t first = cell * s->out + o;
    NAME(window)(pool, wide, s, taps, under, at, weights + o, bias + o, y);
    for (int v = 0; v < wide; v++) {
        const MASK place = __builtin_convertvector(((BYTES *)(which + first))[v], MASK);
        VEC mine = y[0][v];
        for (int k = 1; k < pool * pool; k++)
            mine = NAME(pick)((MASK)(place == k), y[k][v], mine);
        AT(ddout + first, v) = NAME(slant)(AT(out + first, v), mine, slope);
    }
}

/* u [windows][pool * pool]: each window's gradient, at its greatest pixel alone. */
INLINE void NAME(scatter)(const int pool, const shape *s, int64_t windows, const real *dout,
                          const real *out, const uint8_t *which, real slope, VEC *u)
{
    for (int64_t j = 0; j < windows; j++, dout += s->out, out += s->out, which += s->out) {
        const VEC mine = NAME(slant)(AT(out, 0), AT(dout, 0), slope);
        const MASK place = __builtin_convertvector(*(BYTES *)which, MASK);
        for (int k = 0; k < pool * pool; k++)
            *u++ = NAME(pick)((MASK)(place == k), mine, (VEC){0});
    }
}

/* dw[`few` taps from `first`] += u * patch over a row of windows, for one vector of channels. */
INLINE void NAME(gather)(const int pool, const int few, const shape *s, int64_t windows,
                         const int64_t *under, const real *patches, int64_t below, const VEC *u,
                         VEC *sums)
{
    VEC sum[NINE];
    for (int tap = 0; tap < few; tap++)
        sum[tap] = sums[tap];
    for (int64_t j = 0; j < windows; j++, patches += pool * s->stride)
        for (int k = 0; k < pool * pool; k++, u++) {
            const real *patch = patches + k / pool * below + k % pool * s->stride;
            for (int tap = 0; tap < few; tap++)
                sum[tap] += *u * patch[under[tap]];
        }
    for (int tap = 0; tap < few; tap++)
        sums[tap] = sum[tap];
}

/* sums [taps + 1] of one vector of channels += what one row of windows has for dw and db. */
INLINE void NAME(gradient_row)(const int pool, const shape *s, int64_t taps,
                               const int64_t *under, const real *patches, const real *dout,
                               const real *out, const uint8_t *which, real slope, VEC *u,
                               VEC *sums)
{
    const int64_t windows = s->out_width / pool;
    const int64_t below = (s->width + 2 * s->padding) * s->stride;
    int64_t tap = 0;
    NAME(scatter)(pool, s, windows, dout, out, which, slope, u);
    for (int64_t v = 0; v < windows * pool * pool; v++)
        sums[taps] += u[v];
#define TAPS(n)                                                                           \
    for (; tap + n <= taps; tap += n)                                                     \
        NAME(gather)(pool, n, s, windows, under + tap, patches, below, u, sums + tap);
    TAPS(NINE) TAPS(1)
#undef TAPS
}

/* Call for constants of what decides the loops. */
#define STEP(n, call)                                                                     \
    for (; o + n * LANES <= s->out; o += n * LANES)                                       \
        call(n);

#define ALL_CHANNELS                                                                      \
    EACH_WINDOW                                                                           \
    int64_t o = 0;                                                                        \
    STEP(4, CALL) STEP(2, CALL) STEP(1, CALL)                                             \
    END
#define EACH_CHANNEL_OF_EACH_WINDOW                                                       \
    if (s->pool == 2) {                                                                   \
        enum { pool = 2 };                                                                \
        ALL_CHANNELS                                                                      \
    } else {                                                                              \
        enum { pool = 1 };                                                                \
        ALL_CHANNELS                                                                      \
    }

int NAME(first_forward)(const real *x, const real *level, const real *weights, const real *bias,
                        real *out, uint8_t *which, const shape *s, double slope)
{
    OPEN
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *w = weights + t * taps * s->out, *b0 = bias + t * s->out;
#define CALL(n)                                                                           \
    NAME(forward_channels)(pool, n, s, o, cell, taps, under, at, w, b0, (real)slope, out, which)
        EACH_CHANNEL_OF_EACH_WINDOW
#undef CALL
    }
    free(framed);
    return 0;
}

/* of_weights [T, K, O] and of_bias [T, O] are cotangents; ddout is that of dout. */
int NAME(first_pull)(const real *x, const real *level, const real *of_weights,
                     const real *of_bias, const real *out, const uint8_t *which, real *ddout,
                     const shape *s, double slope)
{
    OPEN
    for (int64_t t = 0; t < s->tasks; t++) {
        const real *w = of_weights + t * taps * s->out, *b0 = of_bias + t * s->out;
#define CALL(n)                                                                           \
    NAME(pull_channels)(pool, n, s, o, cell, taps, under, at, w, b0, (real)slope, out, which, \
                        ddout)
        EACH_CHANNEL_OF_EACH_WINDOW
#undef CALL
    }
    free(framed);
    return 0;
}

/* dw [T, K, O] and db [T, O]. */
int NAME(first_gradient)(const real *x, const real *level, const real *dout, const real *out,
                         const uint8_t *which, real *dw, real *db, const shape *s, double slope)
{
    OPEN
    const int64_t vectors = s->out / LANES, many = (taps + 1) * vectors;
    VEC *u = aligned_alloc(64, 64 * (s->out_width * s->pool)), *sums = aligned_alloc(64, 64 * many);
    double *all = malloc(sizeof(double) * (many * LANES));
    if (!sums || !u || !all) {
        free(framed), free(sums), free(u), free(all);
        return 1;
    }
    for (int64_t t = 0; t < s->tasks; t++) {
        memset(all, 0, sizeof(double) * (many * LANES));
        for (int64_t b = 0; b < s->batch; b++) {
            NAME(frame)(s, x + (t * s->batch + b) * image, level + t * s->in, framed);
            memset(sums, 0, 64 * many);
            for (int64_t i = 0; i < cells_h; i++) {
                const int64_t row = ((t * s->batch + b) * cells_h + i) * cells_w * s->out;
                for (int64_t v = 0; v < vectors; v++) {
                    const int64_t at = row + v * LANES;
#define CALL(pool)                                                                        \
    NAME(gradient_row)(pool, s, taps, under, PATCH(i * pool, 0), dout + at, out + at, which + at, \
                       (real)slope, u, sums + v * (taps + 1))
                    if (s->pool == 2)
                        CALL(2);
                    else
                        CALL(1);
#undef CALL
                }
            }
            for (int64_t k = 0; k < many * LANES; k++)
                all[k] += sums[k / LANES][k % LANES];
        }
        for (int64_t o = 0; o < s->out; o++) {
            const double *mine = all + o / LANES * (taps + 1) * LANES + o % LANES;
            for (int64_t k = 0; k < taps; k++)
                dw[(t * taps + k) * s->out + o] = (real)mine[k * LANES];
            db[t * s->out + o] = (real)mine[taps * LANES];
        }
    }
    free(framed), free(u), free(sums), free(all);
    return 0;
}

#undef VEC
#undef MASK
#undef BYTES
#undef LANES
#undef AT
#undef OPEN
#undef PATCH
#undef EACH_WINDOW
#undef END
#undef STEP
#undef ALL_CHANNELS
#undef EACH_CHANNEL_OF_EACH_WINDOW
